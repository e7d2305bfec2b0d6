"""The forms that a sparse layer can take on a machine, and how long each of them takes."""

import copy
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from cutwork.evaluation import Call, first_input, hooked, in_evaluation
from cutwork.kernels import cpu
from cutwork.layers.compressed import Compressed, CompressedConv2d, CompressedLinear
from cutwork.layers.conv2d import SparseConv2d
from cutwork.layers.int8 import Int8Linear, exchange
from cutwork.layers.linear import SparseConv1D, SparseLinear
from cutwork.layers.storage import compress, expand, why_not_compressed, why_not_expanded
from cutwork.layers.swap import SparseLayer
from cutwork.sparsity.fixed import Fixed
from cutwork.sparsity.rest import Rest
from cutwork.speed.cache import TimingCache
from cutwork.speed.timing import Timing, measure
from cutwork.version import __version__

DENSE, TILES = "dense", "tiles"
# In fewer bits than the model: only on request, because results change.
BF16, INT8 = "tiles-bf16", "tiles-int8"

# Another form must be faster by this much: a smaller difference may be chance, and dense layers are simpler.
MARGIN = 1.03
MANY_ROUNDS = 100_000

# How far results may lie apart, relative to their size: the order of the sums differs, or numbers are rounded.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 3e-3}
COARSE = {BF16: 3e-2, INT8: 6e-2}


@final
@dataclass(frozen=True)
class Usage:
    """What a layer is called with: the shape and memory format of its input, and how often in a pass."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool = False
    calls: int = 1

    def example(self, device: torch.device) -> Tensor:
        """Return some input of this kind."""
        generator = torch.Generator(device).manual_seed(0)
        x = torch.randn(self.shape, device=device, generator=generator).to(self.dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x


def usages(model: nn.Module, layers: Mapping[str, nn.Module], call: Call) -> dict[str, Usage]:
    """Return what each of these layers is called with in a pass over the model; the largest of several shapes."""
    seen: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers.values()}

    def look(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        seen[layer].append(first_input(args, kwargs))

    with in_evaluation(model), hooked(layers.values(), before=look):
        call(model)
    return {name: _usage(seen[layer]) for name, layer in layers.items() if seen[layer]}


def _usage(called: list[Tensor]) -> Usage:
    x = max(called, key=Tensor.numel)
    is_image = x.dim() == 4
    return Usage(
        tuple(x.shape),
        x.dtype,
        channels_last=is_image and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous(),
        calls=len(called),
    )


def form_of(layer: nn.Module) -> str:
    """Return the form that a sparse layer has."""
    if isinstance(layer, Int8Linear):
        return INT8
    if isinstance(layer, Compressed):
        return BF16 if vars(layer).get("converts") else TILES
    return DENSE


def names_of(model: nn.Module, layer: nn.Module) -> list[str]:
    """Return the names of a layer, of which it has one for each place that it stands in."""
    return [name for name, module in model.named_modules(remove_duplicate=False) if module is layer]


def obstacle(layer: nn.Module, form: str) -> str:
    """Say why a sparse layer cannot take a form; empty where it can."""
    if form == DENSE:
        return why_not_expanded(layer) if isinstance(layer, Compressed) else ""
    if not isinstance(layer, Compressed) and (reason := why_not_compressed(layer)):
        return reason
    if form in COARSE and isinstance(layer, SparseConv2d | CompressedConv2d):
        return "convolutions have kernels for float32 only"
    return ""


def change(model: nn.Module, names: Sequence[str], form: str, *, training: bool) -> None:
    """Give layers of a model a form, in place; those of fewer bits take the places of the others.

    Where nothing trains, the dense form reads the weight as it lies there, as long as it is zero outside the mask.
    """
    layers = {name: model.get_submodule(name) for name in names}
    if form == DENSE:
        expand({name: layer for name, layer in layers.items() if isinstance(layer, Compressed)})
        for layer in layers.values():
            if isinstance(layer, SparseLinear | SparseConv2d | SparseConv1D):
                layer.sparsity.rest = Rest() if isinstance(layer.sparsity, Fixed) and not training else None
        return
    compress({name: layer for name, layer in layers.items() if not isinstance(layer, Compressed)})
    for layer in layers.values():
        if form == BF16:
            layer.bfloat16().converts = True  # pyrefly: ignore
        elif form == INT8:
            assert isinstance(layer, CompressedLinear)
            exchange(model, layer, Int8Linear.of(layer))


def time_forms(
    layer: SparseLayer, usage: Usage, forms: list[str], *, training: bool, seconds: float, cache: TimingCache | None
) -> dict[str, Timing]:
    """Return how long a call of a layer takes in each form; for training with its backward pass.

    Only what is steady is kept: a number from a busy machine would be believed for ever. Raises ValueError where two
    forms give different results.
    """
    key = _key(layer, usage, training)
    known = {} if cache is None else cache.get(key)
    if all(form in known for form in forms):
        return {form: Timing(known[form], 0.0, 0) for form in forms}
    twins = {form: _twin(layer, form, training=training) for form in forms}
    x = usage.example(layer.trained.device)
    _check_equal(twins, x)
    calls = {form: _call(twin, x, training=training) for form, twin in twins.items()}
    # Who asks for so many seconds gets them, however short a call is.
    timings = measure(calls, seconds=seconds, max_rounds=MANY_ROUNDS)
    if cache is not None and all(timing.is_steady for timing in timings.values()):
        cache.put(key, {form: timing.median_s for form, timing in timings.items()})
    return timings


def at_rest(model: nn.Module, layers: Mapping[str, SparseLayer]) -> None:
    """Let sparse layers of a model compute as dense ones, for inference, at the cost of these."""
    change(model, list(layers), DENSE, training=False)


def _twin(layer: SparseLayer, form: str, *, training: bool) -> nn.Module:
    twin = copy.deepcopy(layer).train(training)
    for hooks in (twin._forward_hooks, twin._forward_pre_hooks, twin._backward_hooks, twin._backward_pre_hooks):
        hooks.clear()
    holder = nn.ModuleDict({"layer": twin})
    change(holder, ["layer"], form, training=training)
    return holder["layer"]


def _call(twin: nn.Module, x: Tensor, *, training: bool) -> Callable[[], object]:
    if not training:

        def infer() -> Tensor:
            with torch.no_grad():
                return twin(x)

        return infer
    source = x.requires_grad_()
    dy = torch.ones_like(twin(source))

    def train() -> None:
        twin(source).backward(dy)
        source.grad = None
        for parameter in twin.parameters():
            parameter.grad = None

    return train


@torch.no_grad()
def _check_equal(twins: Mapping[str, nn.Module], x: Tensor) -> None:
    results = {form: twin(x) for form, twin in twins.items()}
    (first, expected), *others = results.items()
    for form, found in others:
        error = float((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))
        if not error <= COARSE.get(form, TOLERANCES.get(x.dtype, 1e-4)):
            raise ValueError(
                f"the forms {first!r} and {form!r} of a layer give results that differ by {error:.2g} for an input of "
                f"{list(x.shape)}; this is a defect of a kernel on this machine: please report it, with the output of "
                f"'cutwork doctor', and forbid the form until then"
            )


def _key(layer: SparseLayer, usage: Usage, training: bool) -> str:
    sparsity = layer.sparsity
    matrix = sparsity.mask_matrix()
    density = float(matrix.double().mean())
    what = "training" if training else "inference"
    details = {
        name: value for name, value in vars(layer).items() if name in ("stride", "padding", "dilation", "groups")
    }
    return " | ".join(
        [
            f"{cpu.processor()} {'+'.join(cpu.instruction_sets()[:1]) if cpu.has_tiles() else 'reference'}",
            f"{torch.get_num_threads()} threads on {_device_of(layer)}",
            f"torch {torch.__version__} cutwork {__version__} python {platform.python_version()}",
            f"{'x'.join(map(str, matrix.shape))} {sparsity.pattern} {density:.3f} {layer.trained.dtype} {details}",
            f"{'x'.join(map(str, usage.shape))} {usage.dtype} {'nhwc' if usage.channels_last else ''} {what}",
        ]
    )


def _device_of(layer: SparseLayer) -> str:
    """Return what a layer is on; the first GPU of one machine may be another kind than that of the next."""
    device = layer.trained.device
    return f"{device.type} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)
