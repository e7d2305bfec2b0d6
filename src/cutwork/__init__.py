"""cutwork: structured sparse training and inference for PyTorch."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from cutwork.registration import register_operators

__version__ = "0.1.0"

# The public names by the file that holds them. They load at first use, so `cutwork --help` does not wait for torch.
PUBLIC = {
    "cutwork.allocation": ("er", "erk", "uniform"),
    "cutwork.benchmark.compare": ("benchmark",),
    "cutwork.checkpoint": ("describe", "load", "save"),
    "cutwork.digits": ("load_digits",),
    "cutwork.doctor": ("diagnose",),
    "cutwork.exploration": ("Exploration",),
    "cutwork.flops": ("flops",),
    "cutwork.fusion": ("Fusion", "fuse"),
    "cutwork.methods": (
        *("STE", "GraNet", "Gradual", "Method", "RigL", "SRigL", "Static", "Supermask", "Switch"),
        *("View", "hold_fixed", "project_by", "set_", "srste"),
    ),
    "cutwork.packing": ("unpack",),
    "cutwork.patterns": ("Pattern", "parse"),
    "cutwork.plan": ("pack", "plan"),
    "cutwork.report": ("draw_masks", "report"),
    "cutwork.schedules": ("constant", "cosine", "cubic", "exponential", "linear", "power"),
    "cutwork.scores": ("gradient", "magnitude", "random", "taylor"),
    "cutwork.sparsifier": ("Sparsifier",),
    "cutwork.sparsify": ("bake", "copy_masks", "freeze_zeros", "sparsify"),
}
_FILE_OF = {name: file for file, names in PUBLIC.items() for name in names}

# The same for type checkers and editors, which cannot follow a table; a test compares the two.
if TYPE_CHECKING:
    from cutwork.allocation import er as er
    from cutwork.allocation import erk as erk
    from cutwork.allocation import uniform as uniform
    from cutwork.benchmark.compare import benchmark as benchmark
    from cutwork.checkpoint import describe as describe
    from cutwork.checkpoint import load as load
    from cutwork.checkpoint import save as save
    from cutwork.digits import load_digits as load_digits
    from cutwork.doctor import diagnose as diagnose
    from cutwork.exploration import Exploration as Exploration
    from cutwork.flops import flops as flops
    from cutwork.fusion import Fusion as Fusion
    from cutwork.fusion import fuse as fuse
    from cutwork.methods import STE as STE
    from cutwork.methods import Gradual as Gradual
    from cutwork.methods import GraNet as GraNet
    from cutwork.methods import Method as Method
    from cutwork.methods import RigL as RigL
    from cutwork.methods import SRigL as SRigL
    from cutwork.methods import Static as Static
    from cutwork.methods import Supermask as Supermask
    from cutwork.methods import Switch as Switch
    from cutwork.methods import View as View
    from cutwork.methods import hold_fixed as hold_fixed
    from cutwork.methods import project_by as project_by
    from cutwork.methods import set_ as set_
    from cutwork.methods import srste as srste
    from cutwork.packing import unpack as unpack
    from cutwork.patterns import Pattern as Pattern
    from cutwork.patterns import parse as parse
    from cutwork.plan import pack as pack
    from cutwork.plan import plan as plan
    from cutwork.report import draw_masks as draw_masks
    from cutwork.report import report as report
    from cutwork.schedules import constant as constant
    from cutwork.schedules import cosine as cosine
    from cutwork.schedules import cubic as cubic
    from cutwork.schedules import exponential as exponential
    from cutwork.schedules import linear as linear
    from cutwork.schedules import power as power
    from cutwork.scores import gradient as gradient
    from cutwork.scores import magnitude as magnitude
    from cutwork.scores import random as random
    from cutwork.scores import taylor as taylor
    from cutwork.sparsifier import Sparsifier as Sparsifier
    from cutwork.sparsify import bake as bake
    from cutwork.sparsify import copy_masks as copy_masks
    from cutwork.sparsify import freeze_zeros as freeze_zeros
    from cutwork.sparsify import sparsify as sparsify
else:

    def __getattr__(name):
        if name not in _FILE_OF:
            raise AttributeError(f"module 'cutwork' has no attribute {name!r}; public names: {', '.join(_FILE_OF)}")
        value = getattr(importlib.import_module(_FILE_OF[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_FILE_OF})


class _Package(ModuleType):
    """This package, in which `cutwork.sparsify` stays the function of that name when the file is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        # Python sets every imported file as an attribute of its package.
        if not (name in _FILE_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

register_operators()
