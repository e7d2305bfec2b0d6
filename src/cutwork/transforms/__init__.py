"""Changing a dense model into a larger, sparser one that costs the same."""

from cutwork.transforms.larger import Change, Larger, fit

__all__ = ["Change", "Larger", "fit"]
