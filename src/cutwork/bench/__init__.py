"""Measuring sparse layers and models beside dense ones, with a ratio only where the results are equal."""
