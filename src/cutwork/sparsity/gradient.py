"""The gradient of a whole weight, also where its mask is zero: as many rows at a time as somebody wants."""

from abc import ABC, abstractmethod
from typing import ClassVar, final

from torch import Tensor

from cutwork.ops.topology import Topology

# What picks rows out of a matrix.
Rows = Tensor | slice


class DenseGradient(ABC):
    """The gradient of a whole weight as a matrix `[out, in]`, which need never be there as a whole."""

    @abstractmethod
    def is_finite(self) -> bool:
        """Say whether all is finite of which it is made."""

    @abstractmethod
    def rows(self, outputs: Rows, into: Tensor | None = None) -> Tensor:
        """Form some of its rows, perhaps `into` the memory of others that it has formed and nobody needs any more."""


class GradientOfKept(DenseGradient):
    """The dense gradient of a weight of which only some units are stored; `kept` is exact at these."""

    # Whether its rows are exact there too.
    has_exact_rows: ClassVar[bool]

    @abstractmethod
    def kept(self, index: Topology) -> Tensor:
        """Return it at the units that are stored, shaped like their values."""


@final
class WholeGradient(DenseGradient):
    """A gradient that is there as a matrix."""

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix

    def is_finite(self) -> bool:
        return all_finite(self._matrix)

    def rows(self, outputs: Rows, into: Tensor | None = None) -> Tensor:
        return self._matrix[outputs]


def all_finite(tensor: Tensor) -> bool:
    """Say whether all numbers of a tensor are finite."""
    # The sum costs a tenth, and is finite only if they all are; it may overflow where they are.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())
