"""Metrics of sample sets and reconstructions, with intervals, floors and how they were measured."""
