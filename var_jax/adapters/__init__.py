"""Adapters: small trained changes of a frozen transformer, and how they are merged into it."""
