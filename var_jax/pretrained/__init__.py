"""Frozen feature networks, as pure functions of nested dicts of float32 arrays, and distances on
their features.

None of them is trained here: their weights are read from the files that their authors published.
Images are NHWC, and one channel is repeated to three. Every function may be jitted and
differentiated with respect to the images; give the parameters as an argument, so that no program
holds a copy of them.
"""
