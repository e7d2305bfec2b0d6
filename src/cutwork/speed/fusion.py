"""Fusing activations, batch norms and sums into the layers next to them."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from cutwork.evaluation import Call, call_of, hooked, in_evaluation
from cutwork.layers.batch_norm import fuse_norm
from cutwork.layers.compressed import Compressed, CompressedLinear
from cutwork.layers.masked import MaskedLayer
from cutwork.layers.swap import why_not_find
from cutwork.sparsity.fixed import Fixed
from cutwork.speed.sums import fuse_sums, is_trained_norm

Module = nn.Module


@final
@dataclass(frozen=True)
class Fusion:
    """A module that was fused into a layer next to it: `layer` does its work, before or after its own."""

    module: str
    kind: str
    layer: str
    when: str

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.module} ({self.kind}) is done by {self.layer}, {self.when}"


def fuse(model: nn.Module, *inputs: Any) -> tuple[Fusion, ...]:
    """Fuse activations into the layers next to them, in place, and return the modules that were fused.

    The model runs once on the inputs to show which module reads what; a mapping at the end holds inputs by name. An
    activation is fused into the compressed linear layer that alone reads its result, which then keeps only the
    activation's input for its gradient, or else into the compressed layer whose result it alone reads. In evaluation
    (`model.eval()`) batch norms that alone read the result of a layer, compressed or not, are multiplied into its
    weight: the model then loads no checkpoint of the original any more, so do that last. A fused module becomes
    `nn.Identity`.

    In training batch norms do the activations that alone read them and, in blocks whose code `torch.fx` can read, sums
    before ReLUs; such a block becomes an `fx.GraphModule` of the same parts.

    The model must compute the same way for all inputs.

    >>> from cutwork import pack, sparsify
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    >>> sparsifier = sparsify(model, "block:16", density=0.25)
    >>> plan = pack(model, forms="tiles")
    >>> for fusion in fuse(model, torch.rand(2, 64)):
    ...     print(fusion)
    1 (GELU) is done by 2, before
    """
    names = {module: name for name, module in model.named_modules()}
    if not any(isinstance(module, Compressed) or _is_fixed_norm(module) for module in names):
        raise ValueError(why_not_find(model, kind="compressed", otherwise="pack() it first"))
    if not inputs:
        raise ValueError("only a run of the model shows which module reads what; pass its inputs: fuse(model, x)")
    done: list[Fusion] = []
    call = call_of(model, inputs)
    # Each pass may open the way for another: an activation reads a compressed layer once the batch norm is gone.
    while found := _fuse_once(model, names, _observe(model, call)):
        done += found
    return (*done, *_fuse_blocks(model, names))


def _fuse_blocks(model: nn.Module, names: Mapping[Module, str]) -> list[Fusion]:
    found = []
    for block, name in names.items():
        if not name:
            continue
        fused, fusions = fuse_sums(block, name)
        if fused is not block:
            model.set_submodule(name, fused)
        found += [Fusion(name, what, f"{name}.{norm}", "after") for norm, what in fusions]
    return found


def _fuse_once(model: nn.Module, names: Mapping[Module, str], seen: "_Observer") -> list[Fusion]:
    found = []
    for module, name in names.items():
        if seen.calls[module] != 1 or not name:
            continue
        activation = _activation(module)
        reader, source = seen.only_reader(module), seen.only_source(module, _is_layer)
        if activation is not None and isinstance(reader, CompressedLinear) and reader.before == "none":
            reader.before, layer, when = activation, reader, "before"
        elif activation is not None and isinstance(source, Compressed) and source.after == "none":
            source.after, layer, when = activation, source, "after"
        elif activation is not None and (norm := seen.only_source(module, is_trained_norm)) is not None:
            fuse_norm(norm, activation)
            layer, when = norm, "after"
        elif _is_fixed_norm(module) and source is not None and _can_multiply(source, model):
            multiply_outputs(source, *scale_and_shift(module))
            layer, when = source, "in its values" if isinstance(source, Compressed) else "in its weight"
        else:
            continue
        model.set_submodule(name, nn.Identity().train(module.training))
        found.append(Fusion(name, type(module).__name__, names[layer], when))
        # What was observed of these two is no longer true.
        seen.forget(module, layer)
    return found


def _is_layer(module: Module) -> bool:
    return isinstance(module, Compressed | nn.Linear | nn.Conv2d)


def _passes_through(module: Module) -> bool:
    """Say whether a module returns what it is given, in training too if it trains."""
    return isinstance(module, nn.Identity) or (isinstance(module, nn.Dropout) and not (module.training and module.p))


def _activation(module: nn.Module) -> str | None:
    if type(module) is nn.GELU:
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    return "relu" if type(module) is nn.ReLU else "silu" if type(module) is nn.SiLU else None


def _is_fixed_norm(module: nn.Module) -> bool:
    if type(module) is not nn.BatchNorm1d and type(module) is not nn.BatchNorm2d:
        return False
    return not module.training and module.track_running_stats


def _can_multiply(layer: Any, model: nn.Module) -> bool:
    """Say whether what a layer returns can be multiplied in its weight, and nothing else is changed by that."""
    if isinstance(layer, Compressed):
        return layer.after == "none"
    weight = layer._parameters.get("weight")
    holders = sum(each is weight for module in model.modules() for each in module._parameters.values())
    return holders == 1 and (not isinstance(layer, MaskedLayer) or isinstance(layer.sparsity, Fixed))


@torch.no_grad()
def multiply_outputs(layer: Any, scale: Tensor, shift: Tensor) -> None:
    """Multiply each output of a layer by a number and add another to it, from now on."""
    if isinstance(layer, Compressed):
        layer.scale_outputs(scale, shift)
        return
    layer.weight.mul_(scale.to(layer.weight.dtype).view(-1, *[1] * (layer.weight.dim() - 1)))
    bias = torch.zeros_like(shift) if layer.bias is None else layer.bias
    layer.bias = nn.Parameter((bias * scale + shift).to(layer.weight.dtype))


@torch.no_grad()
def scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """Return by what a batch norm in evaluation multiplies each channel, and what it adds then."""
    scale = (norm.running_var + norm.eps).rsqrt()
    shift = -norm.running_mean * scale
    if norm.affine:
        return scale * norm.weight, shift * norm.weight + norm.bias
    return scale, shift


def _observe(model: nn.Module, call: Call) -> "_Observer":
    observer = _Observer({module for module in model.modules() if _passes_through(module)})
    in_place = [module for module in model.modules() if isinstance(module, nn.ReLU | nn.SiLU) and module.inplace]
    try:
        # What is read and what is returned must be two tensors to be told apart.
        for module in in_place:
            module.inplace = False
        with in_evaluation(model), hooked(model.modules(), observer.enter, observer.leave), observer:
            outputs = call(model)
    finally:
        for module in in_place:
            module.inplace = True
    observer.touch(None, tree_leaves(outputs))
    return observer


class _Observer(TorchFunctionMode):
    """Notes which module touches which tensor by any function of torch, itself and not in a part of it."""

    def __init__(self, passing: set[Module]) -> None:
        super().__init__()
        self._passing = passing
        self.calls: Counter[Module] = Counter()
        self._running: list[Module] = []
        # Every tensor is held, so that no other gets its number.
        self._tensors: dict[int, Tensor] = {}
        self._touched_by: defaultdict[int, set[Module | None]] = defaultdict(set)
        self._inputs: dict[Module, list[Tensor]] = {}
        self._outputs: dict[Module, list[Tensor]] = {}
        self._gone: set[Module] = set()

    def enter(self, module: Module, args: tuple, kwargs: dict) -> None:
        self.calls[module] += 1
        self._running.append(module)
        self._inputs[module] = self._hold(tree_leaves((args, kwargs)))

    def leave(self, module: Module, args: tuple, kwargs: dict, output: Any) -> None:
        self._running.pop()
        self._outputs[module] = self._hold(tree_leaves(output))
        if isinstance(module, Compressed):
            # Its product does not go through a function of torch.
            self.touch(module, self._inputs[module])

    def touch(self, module: Module | None, leaves: list[Any]) -> None:
        for tensor in self._hold(leaves):
            if module not in self._passing:
                self._touched_by[id(tensor)].add(module)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.touch(self._running[-1] if self._running else None, tree_leaves((args, kwargs or {})))
        return func(*args, **(kwargs or {}))

    def only_reader(self, module: Module) -> Module | None:
        """Return the only module that reads what a module returns, if there is only one."""
        outputs = self._outputs.get(module, [])
        if len(outputs) != 1 or outputs[0] is (self._inputs[module] or [None])[0]:
            return None
        readers = self._touched_by[id(outputs[0])] - {module}
        return self._single(readers)

    def only_source(self, module: Module, is_kind: Callable[[Module], bool]) -> Module | None:
        """Return the layer of a kind whose result a module reads, if nothing else reads it."""
        inputs = self._inputs.get(module, [])
        if len(inputs) != 1:
            return None
        makers = {maker for maker, outputs in self._outputs.items() if [id(out) for out in outputs] == [id(inputs[0])]}
        makers = {maker for maker in makers if is_kind(maker)}
        if self._touched_by[id(inputs[0])] - makers != {module}:
            return None
        return self._single(makers)

    def forget(self, *modules: Module) -> None:
        self._gone.update(modules)

    def _single(self, modules: set[Any]) -> Module | None:
        module = next(iter(modules)) if len(modules) == 1 else None
        return None if module is None or module in self._gone or self.calls[module] != 1 else module

    def _hold(self, leaves: list[Any]) -> list[Tensor]:
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self._tensors.update((id(tensor), tensor) for tensor in tensors)
        return tensors
