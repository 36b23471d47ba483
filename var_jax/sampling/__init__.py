"""Sampling and editing: the loop over scales, settings per scale, class labels, checks."""
