"""How far results that should be equal may lie apart, by the precision they are computed in."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import final

import torch


@final
@dataclass(frozen=True)
class Tolerance:
    """The largest distance from the right results, as a share of their norm, of one layer and of a whole model."""

    layer: float
    model: float


# What `plan` and `pack` put up with. More than that of a layer is a defect of a kernel, and an error; more than that of
# a model says that the model cannot bear a form, and the layer gets its old one back. Differences grow from layer to
# layer, so of a model this tells a wrong result and no more.
PACKED = {
    # Sums in another order differ by 1e-15.
    "fp64": Tolerance(layer=1e-10, model=1e-6),
    # Sums in another order differ by 1e-6.
    "fp32": Tolerance(layer=1e-4, model=1e-2),
    # Each number is rounded by up to 5e-4.
    "fp16": Tolerance(layer=3e-3, model=0.1),
    # Each number is rounded by up to 4e-3, in both forms.
    "bf16": Tolerance(layer=3e-2, model=0.1),
    # Each number is rounded to one of 127 steps up to the largest of its row, which may be far larger than most.
    "int8": Tolerance(layer=6e-2, model=0.3),
}
# What a time is shown for: its weights and inputs are random, so errors are smaller, and the right results exact.
MEASURED = {
    "fp32": Tolerance(layer=1e-5, model=1e-4),
    "bf16": Tolerance(layer=2e-2, model=0.05),
    "int8": Tolerance(layer=4e-2, model=0.1),
}
# Of a model after a step: AdamW may turn the sign of an update that is nearly zero.
MEASURED_STEP = {"fp32": 1e-3, "bf16": 0.05}

NAMES = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def precision_of(dtype: torch.dtype) -> str:
    """Return the name of the precision in which a kind of number is computed with.

    >>> precision_of(torch.bfloat16)
    'bf16'
    """
    # PyTorch computes with its other kinds of floats in float32.
    return NAMES.get(dtype, "fp32")


def loosest(table: Mapping[str, Tolerance], precisions: Iterable[str | None]) -> Tolerance:
    """Return the loosest tolerances of several precisions, of which None adds nothing.

    >>> loosest(MEASURED, ["fp32", "bf16", None])
    Tolerance(layer=0.02, model=0.05)
    """
    found = [table[precision] for precision in precisions if precision is not None]
    return Tolerance(max((each.layer for each in found), default=0.0), max((each.model for each in found), default=0.0))
