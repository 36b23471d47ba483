"""Benchmarks, and compilation for TPU slices without TPUs by the TPU compiler (`libtpu`)."""
