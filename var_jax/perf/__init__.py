"""Ahead-of-time compilation for TPU slices that are not there, with the real TPU compiler
(`libtpu`)."""
