"""Devices and hosts: the mesh, the sharding of arrays, process groups, preemption, peaks of chips."""
