"""Floating-point operations: what a model costs densely, what its masks leave of that, and what a training step costs.

There are two ways of counting, and numbers of one say nothing beside numbers of the other.

"products" counts two operations for each multiply-add of a matrix product, wherever it happens: in layers, in
attention, in functions. It is the usual one. "every-operation" is that of Sparse-IFT, whose budgets it reproduces to
the unit: additions, multiplications and comparisons of the layers in `OPERATIONS`, and nothing of plain functions.
Activations count as nothing there, because many networks call them as functions; "every-operation+activations" adds
those that are modules (one operation an element, two for `nn.ReLU6`).
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from cutwork.evaluation import Call, call_of, first_input, hooked, in_evaluation
from cutwork.layers.sparse import Sparse
from cutwork.layers.sparse_class import is_conv1d_class
from cutwork.methods import Method, find_method
from cutwork.methods.base import Steps, is_share
from cutwork.sparsity.base import Sparsity


@final
@dataclass(frozen=True)
class LayerFlops:
    """The operations of one layer in a forward pass: with its weight whole, and with what its mask keeps.

    Of these `rest` are the same for every mask, such as those of the bias.
    """

    name: str
    kind: str
    dense: int
    sparse: int
    rest: int = 0


@final
@dataclass(frozen=True)
class Flops:
    """The operations of one forward pass over the inputs given to `flops`, and of one training step on them.

    `unseen` names layers that ran and hold a weight matrix but of which nothing was counted: embeddings, rightly, and
    layers that this way of counting does not know.
    """

    layers: tuple[LayerFlops, ...]
    unseen: tuple[str, ...] = ()

    @property
    def dense(self) -> int:
        """Return the operations of a forward pass if all weights were whole."""
        return sum(layer.dense for layer in self.layers)

    @property
    def sparse(self) -> int:
        """Return the operations of a forward pass with what the masks keep."""
        return sum(layer.sparse for layer in self.layers)

    @property
    def dense_training(self) -> int:
        """Return the operations of a dense training step: backward counts as two forward passes."""
        return 3 * self.dense

    def sparse_training(self, method: str | Method, steps: int | None = None) -> float:
        """Return the operations of a training step, on the average over the steps in which the method moves masks.

        Forward and the gradient of the inputs cost a sparse pass each; the gradient of the weights costs a sparse
        pass too, or a dense one in the share of the steps in which the method needs all of it. The masks are taken as
        they are now, also where the density has yet to fall, so count while they are sparse. Of a run that begins or
        ends dense it is the average over all of it, of so many `steps` where the method does not speak in shares.

        >>> cost = Flops((LayerFlops("fc", "Linear", dense=1000, sparse=100),))
        >>> cost.sparse_training("static"), round(cost.sparse_training("rigl"), 1), cost.sparse_training("supermask")
        (300.0, 308.9, 1200.0)

        Reference: Evci et al., Rigging the lottery, 2020, section 3.1.
        """
        chosen = find_method(method)
        share, sparse_share = chosen.dense_gradient_share, _sparse_share(chosen, steps)
        sparse_step = (3 - share) * self.sparse + share * self.dense
        return sparse_share * sparse_step + (1 - sparse_share) * self.dense_training


def _sparse_share(method: Method, steps: int | None) -> float:
    """Return in which share of a run layers are sparse."""
    begin, end = (
        1.0 if at is None else at if is_share(at) or not at else _share_of(at, steps) for at in method.sparse_span
    )
    return min(1.0, end) - min(1.0, begin)


def _share_of(step: Steps, steps: int | None) -> float:
    if steps is None:
        raise ValueError(
            f"what a training step costs on the average depends on the length of the run, because layers are dense up "
            f"to step {step} or from there on; pass steps=..., or give the method shares of the run"
        )
    return step / steps


class Operations(NamedTuple):
    """What one call of a layer computes; a mask scales additions and multiplications, and leaves the rest."""

    adds: int = 0
    multiplies: int = 0
    rest: int = 0


Rule = Callable[[Any, Tensor, Tensor], Operations]


def _linear(layer: nn.Module, x: Tensor, y: Tensor) -> Operations:
    weight, num_outputs = x.shape[-1] * y.shape[-1], y.shape[-1]
    positions = y.numel() // num_outputs
    bias = 0 if layer.bias is None else num_outputs
    return Operations((weight - num_outputs) * positions, weight * positions, bias * positions)


def _convolution(layer: nn.Conv2d, x: Tensor, y: Tensor) -> Operations:
    # Not every layer has a whole weight to ask.
    weight = layer.out_channels * layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    positions = y.numel() // layer.out_channels
    bias = 0 if layer.bias is None else layer.out_channels
    # One addition less for each position, not for each output as above: the budgets were counted so.
    return Operations((weight - 1) * positions, weight * positions, bias * positions)


def _batch_norm(layer: _BatchNorm, x: Tensor, y: Tensor) -> Operations:
    num_groups = layer.num_features * (len(y) if y.dim() > 2 else y.numel() // layer.num_features)
    return _normalisation(y.numel(), num_groups)


def _layer_norm(layer: nn.LayerNorm, x: Tensor, y: Tensor) -> Operations:
    return _normalisation(y.numel(), y.numel() // math.prod(layer.normalized_shape))


def _group_norm(layer: nn.GroupNorm, x: Tensor, y: Tensor) -> Operations:
    return _normalisation(y.numel(), len(y) * layer.num_groups)


def _normalisation(num_elements: int, num_groups: int) -> Operations:
    """Count mean and variance of each group and one step of each element, which costs five operations."""
    return Operations(rest=2 * (num_elements - num_groups) + 5 * num_elements + num_groups)


def _max_pool(layer: nn.MaxPool2d, x: Tensor, y: Tensor) -> Operations:
    return Operations(rest=y.numel() * (_count_window(layer.kernel_size) - 1))


def _average_pool(layer: nn.AvgPool2d, x: Tensor, y: Tensor) -> Operations:
    return Operations(rest=y.numel() * _count_window(layer.kernel_size))


def _adaptive_average_pool(layer: nn.AdaptiveAvgPool2d, x: Tensor, y: Tensor) -> Operations:
    return Operations(rest=x.numel())


def _count_window(kernel_size: int | tuple[int, int]) -> int:
    return kernel_size**2 if isinstance(kernel_size, int) else math.prod(kernel_size)


def _one_each(layer: nn.Module, x: Tensor, y: Tensor) -> Operations:
    return Operations(rest=y.numel())


def _two_each(layer: nn.Module, x: Tensor, y: Tensor) -> Operations:
    return Operations(rest=2 * y.numel())


OPERATIONS: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    _BatchNorm: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: _adaptive_average_pool,
}
# Of a layer with a sparse weight, by the dimensions of the whole one.
OF_WEIGHTS: dict[int, Rule] = {2: _linear, 4: _convolution}
ACTIVATIONS: dict[type[nn.Module], Rule] = {
    nn.ReLU: _one_each,
    nn.LeakyReLU: _one_each,
    nn.PReLU: _one_each,
    nn.ELU: _one_each,
    nn.ReLU6: _two_each,
}
# The rules of each way of counting; products are seen below the layers and need none.
COUNTINGS: dict[str, dict[type[nn.Module], Rule] | None] = {
    "products": None,
    "every-operation": OPERATIONS,
    "every-operation+activations": OPERATIONS | ACTIVATIONS,
}


def flops(model: nn.Module, *inputs: Any, counting: str = "products") -> Flops:
    """Count the operations of `model(*inputs)` in evaluation, with whole weights and as the masks are now.

    A mapping given last holds what the model takes by name. The counts are for the whole batch: give one sample to know
    what a sample costs. A layer that is called twice counts twice. The model runs once, and is afterwards as it was; on
    the "meta" device it costs no time. `counting` is "products", "every-operation" or "every-operation+activations".

    >>> from cutwork.training.sparsify import sparsify
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> sparsifier = sparsify(model, {"0": "unstructured"}, density=0.25)
    >>> cost = flops(model, torch.rand(1, 8))
    >>> cost.dense, cost.sparse, cost.dense_training, cost.sparse_training("static")
    (384, 192, 1152, 576.0)
    >>> cost.layers[0]
    LayerFlops(name='0', kind='Linear', dense=256, sparse=64, rest=0)

    Reference for "every-operation": Thangarasa et al., Sparse-IFT, 2024.
    """
    if counting not in COUNTINGS:
        raise ValueError(f"unknown counting {counting!r}; write {', '.join(map(repr, COUNTINGS))}")
    call, tally, rules = call_of(model, inputs), _Tally(), COUNTINGS[counting]
    if rules is None:
        _tally_products(model, call, tally)
    else:
        _tally_operations(model, call, tally, rules)
    if not tally.dense:
        raise ValueError(
            f"nothing in this {type(model).__name__} was counted by counting={counting!r}; pass inputs that "
            "make it compute, or another counting"
        )
    layers, unseen = [], []
    for name, module in model.named_modules():
        if module in tally.dense:
            layers.append(tally.count(name, module))
        elif module in tally.ran and has_matrix(module):
            unseen.append(name)
    return Flops(tuple(layers), tuple(unseen))


def kind_of(module: nn.Module) -> str:
    """Return the name of a layer's class, and for a sparse layer that of the dense one."""
    return module.describe_weight().kind if isinstance(module, Sparse) else type(module).__name__


def has_matrix(module: nn.Module) -> bool:
    """Say whether a module is a layer with a weight matrix of its own.

    What holds a layer's mask is none, nor is a part of the model that has layers inside and, say, a table of positions.
    """
    is_layer = all(isinstance(child, Sparsity) for child in module.children()) and not isinstance(module, Sparsity)
    matrices = [parameter for parameter in module.parameters(recurse=False) if parameter.dim() > 1]
    return bool(matrices) and (is_layer or isinstance(module, nn.MultiheadAttention))


class _Tally:
    """Adds up what each module computes, whole and masked, and remembers which modules ran."""

    def __init__(self) -> None:
        self.dense: Counter[nn.Module] = Counter()
        self.sparse: Counter[nn.Module] = Counter()
        self.rest: Counter[nn.Module] = Counter()
        self.ran: set[nn.Module] = set()

    def add(self, module: nn.Module, operations: Operations) -> None:
        kept, total = 1, 1
        if isinstance(module, Sparse):
            weight = module.describe_weight()
            kept, total = weight.num_kept, weight.num_weights
        adds, multiplies, rest = operations
        self.dense[module] += adds + multiplies + rest
        self.sparse[module] += adds * kept // total + multiplies * kept // total + rest
        self.rest[module] += rest

    def count(self, name: str, module: nn.Module) -> LayerFlops:
        """Return what was added up for a module."""
        return LayerFlops(name, kind_of(module), self.dense[module], self.sparse[module], self.rest[module])


def _tally_products(model: nn.Module, call: Call, tally: _Tally) -> None:
    """Count what torch's own counter sees, each product for the innermost module that is running."""
    running = [model]
    seen = 0
    # On a CPU attention is one operator, which the counter does not know.
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    # A compressed product is counted as the whole one, of which the tally takes the kept share, as of a masked one.
    mapping = {
        attention: _attention_products,
        torch.ops.cutwork.block_linear: _compressed_linear_products,
        torch.ops.cutwork.int8_linear: _compressed_linear_products,
        torch.ops.cutwork.block_conv2d: _compressed_convolution_products,
    }
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    counter.mod_tracker = _NoTracker()

    def credit() -> None:
        nonlocal seen
        if new := counter.get_total_flops() - seen:
            tally.add(running[-1], Operations(new // 2, new // 2))
            seen += new

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
        credit()
        tally.ran.add(module)
        running.append(module)

    def leave(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        credit()
        running.pop()

    with counter:
        _evaluate(model, call, enter, leave)


@final
class _NoTracker(ModuleTracker):
    """Stands in for what follows the modules in torch's counter, since the tally does that itself.

    That one listens to the gradients of what modules are given, and a view of a parameter has none in evaluation.
    """

    def __enter__(self) -> "_NoTracker":
        return self

    def __exit__(self, *unused: object) -> None:
        pass


def _attention_products(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _compressed_linear_products(x: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    return 2 * math.prod(x) * out_shape[-1]


def _compressed_convolution_products(x: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    kernel_size, _, _, _, groups, _ = args[6:]
    return 2 * math.prod(out_shape) * math.prod(kernel_size) * x[1] // groups


def _tally_operations(model: nn.Module, call: Call, tally: _Tally, rules: Mapping[type[nn.Module], Rule]) -> None:
    def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
        tally.ran.add(module)

    def leave(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        rule = _find_rule(module, rules)
        if rule is not None:
            x = first_input(args, kwargs)
            tally.add(module, rule(module, x, output if isinstance(output, Tensor) else output[0]))

    _evaluate(model, call, enter, leave)


def _find_rule(module: nn.Module, rules: Mapping[type[nn.Module], Rule]) -> Rule | None:
    if isinstance(module, Sparse):
        return OF_WEIGHTS[len(module.describe_weight().shape)]
    if is_conv1d_class(type(module)):
        return _linear
    return next((rule for kind, rule in rules.items() if isinstance(module, kind)), None)


def _evaluate(model: nn.Module, call: Call, enter: Callable, leave: Callable) -> None:
    """Run the model once, calling `enter` and `leave` around the forward of each module, and leave no trace."""
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        # The fused transformer layer neither calls its parts nor shows its products.
        torch.backends.mha.set_fastpath_enabled(False)
        with in_evaluation(model), hooked(model.modules(), enter, leave):
            call(model)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
