"""Learning rates that carry over from one density to another."""

from typing import Any

from torch import nn

from cutwork.layers.composite import Factorized
from cutwork.layers.swap import sparse_layers


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    power: float = 1.0,
    folded: bool = False,
    decay_all: bool = False,
) -> list[dict[str, Any]]:
    """Return what trains in a model as groups for an optimizer, with `lr` for dense layers and more for sparse ones.

    What a step changes in an output adds up over all inputs that are kept, so with fewer of them it changes less, in
    SGD as in Adam. At the rate divided by the layer's density it changes as much, so a rate that suits the dense model,
    or another density, suits this one. The weight decay is multiplied by the density: a step shrinks a weight by the
    same share. Vectors, such as biases and norms, and what masks are learned by have the plain rate and no decay.
    Frozen parameters are left out, tied ones appear once.

    A rate close to the largest that the dense model bears may be too much for a sparse one. `power=0.5` divides by the
    square root of the density only.

    With `folded`, weights of factors that have nothing between them have no decay, for `transforms.decay_of_factors` to
    decay what they stand for. With `decay_all`, vectors decay too, as older recipes have it.

    The densities are those of now: call it after `sparsify`; where a method changes them while it trains, the rates
    stay. Schedules that scale the rate of each group work; one that sets a number needs one for each.

    >>> from cutwork import sparsify
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> sparsifier = sparsify(model, {"0": "block:16"}, density=0.25)
    >>> for group in param_groups(model, lr=1e-3, weight_decay=0.01):
    ...     print(group["lr"], group["weight_decay"], [tuple(each.shape) for each in group["params"]])
    0.004 0.0025 [(64, 64)]
    0.001 0.0 [(64,), (10,)]
    0.001 0.01 [(10, 64)]

    Reference: Dey et al., Sparse maximal update parameterization, 2024, for Adam.
    """
    layers = sparse_layers(model).values()
    densities = {id(layer.trained): layer.describe_weight().density for layer in layers}
    spared = {id(each) for layer in layers for each in layer.sparsity.parameters()}
    if folded:
        spared |= {id(each) for each in _factors(model)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            share = densities.get(id(parameter), 1.0) ** power
            is_spared = id(parameter) in spared or (parameter.ndim < 2 and not decay_all)
            decay = 0.0 if is_spared else weight_decay * share
            groups.setdefault((lr / share, decay), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def _factors(model: nn.Module) -> list[nn.Parameter]:
    pairs = [module for module in model.modules() if isinstance(module, Factorized) and module.is_linear]
    return [each for pair in pairs for part in (pair.first, pair.second) for each in part.parameters() if each.ndim > 1]
