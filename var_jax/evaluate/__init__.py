"""Metrics of sample sets and of reconstructions, with intervals, floors and the names of what they
were measured by."""
