"""What must be true before a sparsifier may follow optimizers, and which of their updates count."""

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.optim import Optimizer

from cutwork.layers.swap import SparseLayer
from cutwork.methods import Method
from cutwork.sharding import is_distributed, same_on_all_ranks, whole
from cutwork.sparsity import Fixed, Reprojected

Layers = Mapping[str, SparseLayer]
Optimizers = Sequence[Optimizer]


def check_attachable(layers: Layers, method: Method, optimizers: Optimizers, *, hooks: bool) -> None:
    """Raise ValueError where these optimizers cannot train these layers by this method."""
    if not hooks:
        _check_works_after_updates(layers)
    _check_held(layers, method, optimizers)
    _check_masks_agree(layers)


def holds(optimizer: Optimizer, parameter: Tensor) -> bool:
    """Say whether an optimizer updates a parameter."""
    return any(parameter is held for group in optimizer.param_groups for held in group["params"])


def is_skipping(optimizer: Optimizer) -> bool:
    """Say whether the update under way does not count.

    A fused optimizer is called, and leaves it out, when the gradient has overflowed.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return (found_inf is not None and bool(found_inf)) or _is_rehearsal(optimizer)


def _is_rehearsal(optimizer: Optimizer) -> bool:
    """Say whether the update under way changes nothing.

    torch.distributed.checkpoint makes such a one before it saves or loads, for the optimizer to have a state.
    """
    if any(float(group.get("lr", 1.0)) for group in optimizer.param_groups):
        return False
    gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
    return not any(bool(whole(gradient.any())) for gradient in gradients if gradient is not None)


def _check_held(layers: Layers, method: Method, optimizers: Optimizers) -> None:
    if not optimizers:
        raise ValueError("attach: pass the optimizer that trains the model")
    missing: dict[str, list[str]] = {"weights": [], "score parameters": []}
    for name, layer in layers.items():
        for what, parameters in (("weights", [layer.weight]), ("score parameters", layer.sparsity.parameters())):
            trained = [parameter for parameter in parameters if parameter.requires_grad]
            if not all(any(holds(optimizer, parameter) for optimizer in optimizers) for parameter in trained):
                missing[what].append(name)
        if method.needs_gradient and not layer.weight.requires_grad:
            raise ValueError(
                f"attach: {name}.weight is frozen, so {type(method).__name__} gets no gradient to grow by; "
                "unfreeze it, or leave the layer out"
            )
        if isinstance(layer.sparsity, Fixed) and layer.sparsity.is_too_narrow:
            raise ValueError(
                f"attach: {name} was turned to float16 after sparsify(), too narrow for the sums of squares that "
                "estimate=True needs; call half() before sparsify()"
            )
    for what, names in missing.items():
        if names:
            raise ValueError(
                f"attach: the optimizer does not hold the {what} of {len(names)} layers (first: {names[0]}); build "
                "the optimizer after sparsify()"
            )


def _check_works_after_updates(layers: Layers) -> None:
    for name, layer in layers.items():
        if isinstance(layer.sparsity, Reprojected) and layer.sparsity.decay:
            raise ValueError(
                f"attach: {name} has a decay of {layer.sparsity.decay:g}, which joins the gradient before every "
                "update; leave out hooks=False"
            )


def _check_masks_agree(layers: Layers) -> None:
    for name, layer in layers.items():
        if not same_on_all_ranks(layer.sparsity.mask, of=layer.weight):
            raise ValueError(
                f"attach: ranks hold different masks of {name}; seed all ranks alike before sparsify(), because "
                "fully_shard() takes the weights of each rank as they are"
            )
        # Weights that were replaced by another rank's do not fit the mask; nothing needs to be sent to see it.
        if is_distributed() and isinstance(layer.sparsity, Fixed) and not layer.sparsity.fits(layer.weight):
            raise ValueError(
                f"attach: {name}.weight is not zero outside its mask, so the mask was made for another one; seed "
                "all ranks alike before sparsify(), or let DistributedDataParallel broadcast buffers"
            )
