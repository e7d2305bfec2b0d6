"""Changing a dense model into a larger, sparser one that costs the same."""

from cutwork.transforms.larger import Change, Larger, fit
from cutwork.transforms.widening import wide

__all__ = ["Change", "Larger", "fit", "wide"]
