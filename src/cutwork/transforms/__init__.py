"""Changing a dense model into a larger, sparser one that costs the same."""

from cutwork.transforms.branching import parallel
from cutwork.transforms.decay import decay_of_factors, folded_decay
from cutwork.transforms.doping import doped
from cutwork.transforms.factoring import factorized
from cutwork.transforms.larger import Change, Larger, fit
from cutwork.transforms.wide_factoring import wide_factorized
from cutwork.transforms.widening import wide

__all__ = [
    "Change",
    "Larger",
    "decay_of_factors",
    "doped",
    "factorized",
    "fit",
    "folded_decay",
    "parallel",
    "wide",
    "wide_factorized",
]
