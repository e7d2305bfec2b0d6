"""What must be true before a sparsifier may follow optimizers, and which of their updates count."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cutwork.distributed import is_distributed, is_sharded, processes_agree, same_on_all_ranks, whole
from cutwork.layers.swap import SparseLayer, sparse_layers
from cutwork.methods import Method
from cutwork.ops.topology import Topology
from cutwork.sparsity.compressed import FixedIndex
from cutwork.sparsity.estimate import why_not_estimate
from cutwork.sparsity.numbers import Mask
from cutwork.sparsity.reprojected import Reprojected
from cutwork.text import counted, label

Layers = Mapping[str, SparseLayer]
Optimizers = Sequence[Optimizer]


def unwrap(optimizer: Any) -> Optimizer:
    """Return the optimizer that does the updates, out of what wraps it, as accelerate and Lookahead do."""
    inner = [value for value in getattr(optimizer, "__dict__", {}).values() if isinstance(value, Optimizer)]
    if len(inner) == 1 and inner[0] is not optimizer:
        return unwrap(inner[0])
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{optimizer!r} is no torch optimizer; pass torch.optim.AdamW(...) or the like")
    return optimizer


def check_attachable(layers: Layers, method: Method, optimizers: Optimizers, *, hooks: bool) -> None:
    """Raise ValueError where these optimizers cannot train these layers by this method."""
    if not optimizers:
        raise ValueError("attach() got no optimizer; pass the one that trains the model")
    if hooks:
        _check_calls_hooks(optimizers)
    else:
        _check_works_after_updates(layers, method)
    _check_held(layers, optimizers)
    _check_rates(layers, optimizers)
    _check_compressed(layers, method)
    _check_masks_agree(layers)


def holds(optimizer: Optimizer, parameter: Tensor) -> bool:
    """Say whether an optimizer updates a parameter."""
    return any(parameter is held for group in optimizer.param_groups for held in group["params"])


def learning_rates(optimizer: Optimizer) -> dict[Tensor, float]:
    """Return the learning rate of each parameter; zero where an optimizer has none."""
    return {
        parameter: rate
        for group in optimizer.param_groups
        for rate in [float(group.get("lr", 0.0))]
        for parameter in group["params"]
    }


def is_skipping(optimizer: Optimizer) -> bool:
    """Say whether this update does not count.

    A fused optimizer is called also when the gradient has overflowed, and then leaves the weights as they are.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return (found_inf is not None and bool(found_inf)) or _is_rehearsal(optimizer)


def hide_gradients(optimizer: Optimizer) -> dict[Tensor, Tensor]:
    """Take away all gradients from an optimizer, so that it passes over its parameters, and return them."""
    hidden = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                hidden[parameter], parameter.grad = parameter.grad, None
    return hidden


def _is_rehearsal(optimizer: Optimizer) -> bool:
    """Say whether this update changes nothing.

    torch.distributed.checkpoint makes one such before it saves or loads, so that the optimizer has a state.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return True
    if any(float(group.get("lr", 1.0)) for group in optimizer.param_groups):
        return False
    return not any(bool(whole(gradient.any())) for gradient in gradients)


def find_in_average(layers: Layers, average: nn.Module) -> dict[str, SparseLayer]:
    """Return the layers of an average of the model, by their names in the model; ValueError where masks differ."""
    found, first = sparse_layers(average), next(iter(layers))
    for prefix in {key.removesuffix(first).removesuffix(".") for key in found if f".{key}".endswith(f".{first}")}:
        along = {name: found.get(".".join(part for part in (prefix, name) if part)) for name in layers}
        taken = {name: layer for name, layer in along.items() if layer is not None}
        if len(taken) == len(layers):
            break
    else:
        raise ValueError(
            f"the average has no sparse layers by the names of the model's, such as {first or 'its own'}; "
            "pass an average of the model that was sparsified, made after sparsify()"
        )
    for name, layer in taken.items():
        matrices = [each.sparsity.mask_matrix() for each in (layers[name], layer)]
        if type(layer) is not type(layers[name]) or not torch.equal(matrices[0], matrices[1].to(matrices[0].device)):
            raise ValueError(
                f"{label(name)} has another mask in the average; take it along from the "
                "beginning, or give it the masks of the model by copy_masks(model, average) first"
            )
    return taken


def check_used(layers: Layers) -> None:
    """Raise ValueError where a weight has a gradient although its layer was never called."""
    for name, layer in layers.items():
        if layer.trained.grad is not None and not layer.sparsity.was_used:
            raise ValueError(
                f"{name}: something reads its weight without calling the layer, so its mask does nothing; leave it "
                f"out of sparsify() with {{{name!r}: 'dense'}}"
            )


def check_parameters(layers: Layers, attached: Mapping[str, Tensor]) -> None:
    """Raise ValueError where a layer trains something else than when the sparsifier was attached."""
    for name, layer in layers.items():
        if layer.trained is not attached[name]:
            raise ValueError(
                f"{label(name)}: its weight is no longer the parameter that it was at attach(), so no "
                "mask would reach what is trained; put parametrizations, pruning and new parameters in before "
                "sparsify(), or detach() and attach() a new optimizer after them"
            )


def check_sizes(layers: Layers, optimizers: Optimizers) -> None:
    """Raise ValueError where a state dict has changed the number of units, and an optimizer remembers the old one."""
    for name, layer in layers.items():
        if not layer.sparsity.was_resized:
            continue
        for optimizer in optimizers:
            state = optimizer.state.get(layer.trained, {}).values()
            others = [held for held in state if isinstance(held, Tensor) and held.ndim == layer.trained.ndim]
            if any(held.shape != layer.trained.shape for held in others):
                raise ValueError(
                    f"{name}: a state dict has brought another number of units, {len(layer.trained)}, but "
                    f"{type(optimizer).__name__} remembers {len(others[0])}; load the optimizer's state dict too, or "
                    "detach() and attach() a new optimizer"
                )


def check_state(
    name: str, layer: SparseLayer, optimizers: Optimizers, *, reorders: bool = False, resizes: bool = False
) -> None:
    """Raise ValueError where an optimizer keeps numbers for a layer that a move could not take along."""
    trained = layer.trained
    for optimizer in optimizers:
        for key, value in optimizer.state.get(trained, {}).items():
            is_per_weight = isinstance(value, Tensor) and value.shape == trained.shape
            if is_per_weight and not (value.is_floating_point() or value.is_complex()):
                raise ValueError(
                    f"{name}: {type(optimizer).__name__} keeps its state {key!r} as {value.dtype}, where zero may "
                    "not mean nothing; use an optimizer with floating-point state"
                )
        if not reorders:
            continue
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                # Some keep vectors over all parameters, under the first of them.
                is_of_layer = parameter is trained or _size(value) > parameter.numel()
                if (
                    is_of_layer
                    and _size(value) > 1
                    and not (isinstance(value, Tensor) and value.shape == parameter.shape)
                ):
                    raise ValueError(
                        f"{name}: its mask moves, and with it which weights its values are, but "
                        f"{type(optimizer).__name__} keeps a state {key!r} that is not shaped like them and cannot "
                        'move along; use an optimizer with a number for each weight, or storage="dense"'
                    )
    if resizes and is_distributed():
        raise ValueError(
            f"{name}: the number of units it keeps changes, which DistributedDataParallel cannot follow; use a method "
            'that keeps the number, such as RigL on blocks, or storage="dense"'
        )


def check_mask(layer: SparseLayer, mask: Mask) -> None:
    """Raise ValueError where a method has returned something that is no mask of this layer."""
    # Tiles of the layer's own grid are whole units.
    if isinstance(mask, Topology):
        return
    expected, pattern = layer.sparsity.layout.matrix_shape, layer.sparsity.pattern
    if mask.dtype != torch.bool or mask.shape != expected:
        raise ValueError(
            f"the method returned {mask.dtype} of shape {tuple(mask.shape)} as a mask; it must be a bool matrix of "
            f"shape {expected}"
        )
    if pattern.every_choice_is_legal and not pattern.allows(mask):
        raise ValueError(f"the method returned a mask that cuts the units of {pattern}; project() keeps them whole")


def _check_calls_hooks(optimizers: Optimizers) -> None:
    for optimizer in optimizers:
        # torch.optim.Optimizer wraps the method `step` of a class when its __init__ first runs.
        if not getattr(type(optimizer).step, "hooked", False):
            raise ValueError(
                f"{type(optimizer).__name__} does not call torch's hooks around its updates, so masks would "
                "never move; attach(optimizer, hooks=False) and call step() of the sparsifier after every update"
            )


def _check_held(layers: Layers, optimizers: Optimizers) -> None:
    missing: dict[str, list[str]] = {"weights": [], "score parameters": []}
    for name, layer in layers.items():
        for what, parameters in (("weights", [layer.trained]), ("score parameters", layer.sparsity.parameters())):
            trained = [parameter for parameter in parameters if parameter.requires_grad]
            if not all(any(holds(optimizer, parameter) for optimizer in optimizers) for parameter in trained):
                missing[what].append(name)
        if reason := why_not_estimate(layer.sparsity.energies):
            raise ValueError(f"{label(name)}: {reason}")
    for what, names in missing.items():
        if names:
            raise ValueError(
                f"the optimizer does not hold the {what} of {counted(len(names), 'layer')} (first: {label(names[0])}); "
                "build the optimizer after sparsify()"
            )


def _trained_name(layer: SparseLayer) -> str:
    """Return what the parameter that the mask belongs to is called in its layer."""
    return next(name for name, parameter in layer.named_parameters() if parameter is layer.trained)


def _check_works_after_updates(layers: Layers, method: Method) -> None:
    if method.replaces_update:
        raise ValueError(
            f"with replaces_update=True {type(method).__name__} keeps optimizers from updating in some steps, "
            "which takes hooks; leave out hooks=False"
        )
    for name, layer in layers.items():
        if isinstance(layer.sparsity, Reprojected) and layer.sparsity.decay:
            raise ValueError(
                f"{label(name)} has a decay of {layer.sparsity.decay:g}, which needs the gradient before every "
                "update; leave out hooks=False"
            )


def _check_rates(layers: Layers, optimizers: Optimizers) -> None:
    """Raise ValueError where a decoupled decay would be multiplied by a learning rate that is not there."""
    for name, layer in layers.items():
        if not (isinstance(layer.sparsity, Reprojected) and layer.sparsity.decoupled):
            continue
        for optimizer in optimizers:
            if holds(optimizer, layer.trained) and any("lr" not in group for group in optimizer.param_groups):
                raise ValueError(
                    f"{label(name)} has a decoupled decay, which is multiplied by the learning rate, and "
                    f"{type(optimizer).__name__} has none named 'lr' in its groups of parameters; leave decoupled out"
                )


def _check_compressed(layers: Layers, method: Method) -> None:
    """Raise ValueError where processes that train together cannot move the masks of compressed storage.

    A process alone in its group is as little able to: DistributedDataParallel does the same with it.
    """
    for name, layer in layers.items():
        index = layer.sparsity
        if not isinstance(index, FixedIndex) or not is_distributed():
            continue
        if is_sharded(layer.trained) and method.moves:
            raise ValueError(
                f"{label(name)} is compressed and sharded by fully_shard(), where only static masks work; got "
                f'{type(method).__name__}; use storage="dense", or DistributedDataParallel'
            )
        if _will_be_resized(index, method) and method.moves and not is_sharded(layer.trained):
            raise ValueError(
                f"{label(name)} keeps {index.topology.num_units} units now and will keep another number, and "
                "DistributedDataParallel cannot follow a parameter that changes its size; use a method that keeps "
                'the number of units, such as RigL, or storage="dense"'
            )
        if not processes_agree(index.ptr, index.col):
            raise ValueError(
                f"processes hold different masks of {label(name)}; seed all of them alike before sparsify(), or let "
                "DistributedDataParallel broadcast buffers"
            )


def _will_be_resized(index: FixedIndex, method: Method) -> bool:
    """Say whether a mask does not have the density that it will have in the end, or is whole for a part of the run."""
    if method.sparse_span != (0, None):
        return True
    pattern = index.pattern
    num_units = int(pattern.units(index.mask_matrix()).sum()) if pattern.every_choice_is_legal else 0
    return pattern.every_choice_is_legal and num_units != pattern.count(index.shape, index.density)


def _check_masks_agree(layers: Layers) -> None:
    for name, layer in layers.items():
        if not same_on_all_ranks(layer.sparsity.mask, of=layer.trained):
            raise ValueError(
                f"ranks hold different masks of {label(name)}; seed all ranks alike before sparsify(), because "
                "fully_shard() takes the weights of each rank as they are"
            )
        # Weights that were replaced by another rank's do not fit the mask; nothing needs to be sent to see it.
        if is_distributed() and not layer.sparsity.fits(layer.trained):
            raise ValueError(
                f"the {_trained_name(layer)!r} of {label(name)} is not zero outside its mask, so the mask was made for "
                "another one; seed all ranks alike before sparsify(), or let DistributedDataParallel broadcast buffers"
            )


def _size(value: object) -> int:
    """Return how many numbers a part of an optimizer's state holds."""
    if isinstance(value, Tensor):
        return value.numel()
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 0
