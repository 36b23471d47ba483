"""Families of runs: their plan, claims on them, the driver, and a backend per scheduler."""
