"""Image folders, TFDS data sets and token caches, and batches as a function of (seed, step)."""
