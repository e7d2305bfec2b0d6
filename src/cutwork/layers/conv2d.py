"""Convolutions with dense storage: the weight has its full shape and a mask beside it."""

from typing import final

from torch import Tensor, nn

from cutwork.layers.masked import MaskedLayer
from cutwork.layers.parameter import read_parameter, rests


@final
class SparseConv2d(MaskedLayer, nn.Conv2d):
    """An `nn.Conv2d`, with all its options, that multiplies with what its `sparsity` makes of the weight."""

    weight: nn.Parameter  # pyrefly: ignore[bad-override-mutable-attribute]

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of the input with the effective weight."""
        if rests(self):
            return self._conv_forward(input, read_parameter(self, "weight"), read_parameter(self, "bias"))
        weight = self.sparsity.leave_out(self.sparsity(self.weight), is_training=self.training)
        return self.sparsity.observe(input, self._conv_forward(input, weight, self.bias), -3)
