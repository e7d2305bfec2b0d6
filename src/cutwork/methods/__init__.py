"""Methods: when and how masks move in training."""

from collections.abc import Callable

from cutwork.methods.base import Method, View, generator_for, hold_fixed, project_by
from cutwork.methods.gradual import Gradual
from cutwork.methods.granet import GraNet
from cutwork.methods.rigl import RigL, set_
from cutwork.methods.spartan import Spartan
from cutwork.methods.srigl import SRigL
from cutwork.methods.static import Static
from cutwork.methods.ste import STE, srste
from cutwork.methods.supermask import Supermask
from cutwork.methods.switch import Switch
from cutwork.text import did_you_mean

__all__ = [
    "METHODS", "STE", "GraNet", "Gradual", "Method", "RigL", "SRigL", "Spartan", "Static", "Supermask", "Switch",
    "View", "find_method", "generator_for", "hold_fixed", "project_by", "set_", "srste",
]  # fmt: skip

METHODS: dict[str, Callable[[], Method]] = {
    "static": Static,
    "gradual": Gradual,
    "set": set_,
    "rigl": RigL,
    "granet": GraNet,
    "srigl": SRigL,
    "dsb": RigL,
    "ssb": Static,
    "supermask": Supermask,
    "spartan": Spartan,
    "ste": STE,
    "srste": srste,
}


def find_method(method: str | Method) -> Method:
    """Return the method of this name with its defaults; a method is returned as it is."""
    if isinstance(method, Method):
        return method
    if method not in METHODS:
        near = did_you_mean(method, METHODS)
        raise ValueError(f"unknown method {method!r}{near}; write {', '.join(map(repr, METHODS))}, or pass a Method")
    return METHODS[method]()
