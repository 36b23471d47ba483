"""Data sets: image folders, TFDS data sets and token caches, and batches that are a function of
(seed, step)."""
