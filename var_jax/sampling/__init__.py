"""Sampling and editing: the loop over scales, settings that may differ per scale, labels, checks."""
