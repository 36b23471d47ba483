"""Training: the loop, the compiled step, batches, evaluation, metrics, resuming, the workdir."""
