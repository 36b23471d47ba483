"""Frozen feature networks, and distances on their features.

The networks are pure functions of nested dicts of float32 arrays, read from the files that their
authors published. Images are NHWC, and a single channel is repeated to three. Every function may be
jitted and differentiated with respect to the images; pass the parameters as an argument, so that no
program holds a copy of them.
"""
