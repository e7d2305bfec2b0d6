"""Linear layers with dense storage: the weight has its full shape and a mask beside it."""

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from cutwork.layers.masked import MaskedLayer
from cutwork.layers.parameter import read_parameter, rests


@final
class SparseLinear(MaskedLayer, nn.Linear):
    """An `nn.Linear` that multiplies with what its `sparsity` makes of the weight."""

    weight: nn.Parameter  # pyrefly: ignore[bad-override-mutable-attribute]

    def forward(self, input: Tensor) -> Tensor:
        """Return the input times the effective weight, plus the bias."""
        if rests(self):
            return F.linear(input, read_parameter(self, "weight"), read_parameter(self, "bias"))
        weight = self.sparsity.leave_out(self.sparsity(self.weight), is_training=self.training)
        return self.sparsity.observe(input, F.linear(input, weight, self.bias), -1)


@final
class SparseConv1D(MaskedLayer):
    """transformers' `Conv1D`, a linear layer whose weight is stored `[in, out]`, with a sparse weight."""

    bias: nn.Parameter
    nf: int
    nx: int

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` times the effective weight, plus the bias."""
        if rests(self):
            return F.linear(x, read_parameter(self, "weight").T, read_parameter(self, "bias"))
        weight = self.sparsity.leave_out(self.sparsity(self.weight), is_training=self.training)
        return self.sparsity.observe(x, F.linear(x, weight.T, self.bias), -1)

    def extra_repr(self) -> str:
        """Describe the layer as transformers does."""
        return f"nf={self.nf}, nx={self.nx}"
