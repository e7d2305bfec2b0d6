"""Sweeps: a run with each combination of some options' values, here or as jobs."""
