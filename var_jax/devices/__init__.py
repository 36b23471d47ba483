"""Devices and hosts: the mesh, sharding of arrays, process groups, preemption, peaks of chips."""
