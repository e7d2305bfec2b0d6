"""Weight decay of two factors as if they were the one matrix that they stand for."""

import torch
from torch import Tensor, nn

from cutwork.layers.composite import Factorized, weight_behind_mask


def folded_decay(first: Tensor, second: Tensor, *, weight_decay: float) -> Tensor:
    """Return half of `weight_decay` times the sum of squares of the product of two factors, to be added to a loss.

    `first` is the weight of the layer that reads, `[inner, inputs]` or `[inner, channels, height, width]`; `second` is
    that of the layer behind it, `[outputs, inner]` or of a 1x1 convolution. Decay of each factor by itself is another
    penalty, so give these two none in the optimizer. Of a sparse layer in dense storage take the weight behind its
    mask, `layer.sparsity(layer.weight)`, so that the gradient is masked too.

    The product is formed only where that is cheaper than the products of each factor with itself.

    >>> first, second = torch.ones(2, 8), torch.ones(4, 2)
    >>> float(folded_decay(first, second, weight_decay=0.1)), 0.1 / 2 * float((second @ first).square().sum())
    (6.400000095367432, 6.4)

    Reference: Thangarasa et al., Sparse-IFT, 2024.
    """
    if weight_decay < 0:
        raise ValueError(f"weight_decay={weight_decay} would make the product larger; give a number of at least 0")
    if first.ndim < 2 or second.ndim < 2 or second.flatten(1).shape[1] != first.shape[0]:
        raise ValueError(
            f"factors of shapes {list(first.shape)} and {list(second.shape)} do not multiply; give the weights "
            "[inner, inputs, ...] and [outputs, inner], or [outputs, inner, 1, 1]"
        )
    wide = torch.promote_types(first.dtype, torch.float32)
    inner, outer = first.flatten(1).to(wide), second.flatten(1).to(wide)
    (rank, inputs), outputs = inner.shape, len(outer)
    if rank * (inputs + outputs) < inputs * outputs:
        squares = ((outer.T @ outer) * (inner @ inner.T)).sum()
    else:
        squares = (outer @ inner).square().sum()
    return squares * (weight_decay / 2)


def decay_of_factors(model: nn.Module, *, weight_decay: float) -> Tensor:
    """Return `folded_decay` of all factors in a model with nothing between them, of `factorized` and `doped` alike.

    Give their weights no decay in the optimizer: `param_groups(model, ..., folded=True)` does.

    >>> from cutwork.transforms import factorized
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    >>> larger = factorized(model, density=0.5, inputs=torch.rand(1, 4))
    >>> decay_of_factors(larger.model, weight_decay=1e-4).shape
    torch.Size([])

    Reference: Thangarasa et al., Sparse-IFT, 2024.
    """
    pairs = [module for module in model.modules() if isinstance(module, Factorized) and module.is_linear]
    if not pairs:
        raise ValueError("the model has no factors with nothing between them; transforms.factorized() makes some")
    decays = [
        folded_decay(weight_behind_mask(pair.first), weight_behind_mask(pair.second), weight_decay=weight_decay)
        for pair in pairs
    ]
    return torch.stack(decays).sum()
