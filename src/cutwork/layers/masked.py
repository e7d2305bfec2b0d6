"""Dense storage: the weight has its full shape and a mask beside it."""

from typing import final

from torch import nn

from cutwork.layers.sparse import Sparse, WeightFacts
from cutwork.sparsity.masked import Masked


class MaskedLayer(Sparse):
    """A layer that multiplies with what its `sparsity` makes of the weight."""

    weight: nn.Parameter
    sparsity: Masked

    @final
    @property
    def trained(self) -> nn.Parameter:
        """Return the parameter that the mask belongs to."""
        return self.weight

    @final
    def describe_weight(self) -> WeightFacts:
        """Say what the mask keeps of the weight, which PyTorch's own kernels multiply whole."""
        weight, num_kept = self.weight, int(self.sparsity.mask.sum())
        return WeightFacts(
            kind=type(self).__name__.removeprefix("Sparse"),
            pattern=self.sparsity.pattern,
            shape=tuple(weight.shape),
            num_kept=num_kept,
            numbers=weight,
            stored_bytes=weight.nbytes,
            kept_bytes=num_kept * weight.element_size(),
            kernel="dense",
        )
