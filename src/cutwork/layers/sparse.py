"""What every layer with a sparse weight says about it, however the weight is stored and multiplied."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from cutwork.patterns import Pattern


@final
@dataclass(frozen=True)
class WeightFacts:
    """The facts about the sparse weight of a layer.

    `kind` is the name of the dense class that computes the same, `shape` that of the whole weight. What is kept lies
    in `numbers`, which layers that share a weight have in common, and takes `stored_bytes` with all that says where it
    belongs; `kept_bytes` are fewer where zeros are stored too. `kernel` is the name of what multiplies it here.
    """

    kind: str
    pattern: Pattern
    shape: tuple[int, ...]
    num_kept: int
    numbers: Tensor
    stored_bytes: int
    kept_bytes: int
    kernel: str

    @property
    def num_weights(self) -> int:
        """Return how many entries the whole weight has."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """Return the share of the entries that is kept."""
        return self.num_kept / self.num_weights


class Sparse(nn.Module):
    """A layer with a sparse weight. It has the `bias` and the sizes of the dense layer, under the same names.

    Reports, counts of operations and benchmarks ask nothing else, so they need not know each kind of layer.
    """

    @abstractmethod
    def describe_weight(self) -> WeightFacts:
        """Return what there is to say about the weight as it is now."""
