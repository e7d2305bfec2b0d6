"""Sparse models as ONNX files: dense, with zeros where masks are, which runtimes with sparse kernels look for."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from cutwork.costs.zeros import DENSE, Zeros, find_order
from cutwork.evaluation import Call, call_of, copy_model, in_evaluation
from cutwork.layers.int8 import Int8Linear
from cutwork.layers.swap import sparse_layers
from cutwork.patterns import NM, Pattern
from cutwork.sparsity.layout import Layout
from cutwork.text import in_columns, label
from cutwork.training.baking import bake

# How far, relative to the largest, outputs in the runtime may lie from those of the model.
MOST_ERROR = 1e-4
# Larger models than a file of protocol buffers can hold have their weights beside it.
LARGEST_INSIDE = 1_500_000_000
BATCH = "batch"


@final
@dataclass(frozen=True)
class OnnxFile:
    """What was written: the order in the zeros of each weight that has some, as they stand in the file.

    `error` is the largest difference of an output in ONNX Runtime from the model's, relative to its largest.
    """

    path: Path
    zeros: dict[str, Zeros]
    error: float

    def __str__(self) -> str:
        """Say what is in the file."""
        rows = [
            (name, "x".join(map(str, each.shape)), f"{each.density:.4g}", str(each))
            for name, each in self.zeros.items()
        ]
        table = (
            in_columns([("weight", "shape", "density", "zeros"), *rows], "<<><") if rows else ["no weight has zeros"]
        )
        return "\n".join([*table, f"{self.path}: outputs in ONNX Runtime differ by {self.error:.1g} at most"])


def to_onnx(
    model: nn.Module, path: str | Path, *inputs: Any, dynamic_batch: bool = False, opset: int | None = None
) -> OnnxFile:
    """Write a model to an ONNX file, with masks folded into its weights, and return what was found in it afterwards.

    The model stays as it is: sparse in any storage, or an ordinary one with zeros. ONNX has no sparse layers that
    runtimes take, so weights are whole; the file is as large as that of the dense model, and TensorRT finds 2:4 in it
    with its flag for sparse weights. `inputs` are an example, a mapping at the end holding what the model takes by
    name. With `dynamic_batch` the first side of each may have any length; the example needs two or more.

    What was written is read again: each weight must have its zeros, n:m must hold, and ONNX Runtime must return what
    the model does. Otherwise it is an error, and no file is there. Needs the packages of the extra `export`.
    """
    if not inputs:
        raise ValueError("an ONNX file is traced from an example; pass inputs: to_onnx(model, 'model.onnx', x)")
    onnx, runtime = _package("onnx"), _package("onnxruntime")
    _package("onnxscript")
    if names := [name for name, layer in model.named_modules() if isinstance(layer, Int8Linear)]:
        raise ValueError(
            f"{label(names[0])} computes in int8 with kernels of cutwork, and its weight is gone; export the model as "
            "it was before pack(precisions=['int8'])"
        )
    baked = copy_model(model).eval()
    held = {name: (each.sparsity.pattern, each.sparsity.layout) for name, each in sparse_layers(baked).items()}
    if held:
        bake(baked)
    call, path = call_of(baked, inputs), Path(path)
    if dynamic_batch and (short := [leaf for leaf in _tensors(call) if not leaf.ndim or len(leaf) < 2]):
        raise ValueError(
            f"dynamic_batch needs an example of a batch of two or more in every tensor; one is {list(short[0].shape)}"
        )
    with TemporaryDirectory(dir=path.resolve().parent, prefix=f".{path.name}.") as folder:
        written = Path(folder) / path.name
        _export(baked, call, written, dynamic_batch=dynamic_batch, opset=opset)
        found = _find_weights(baked, _read_weights(onnx, written))
        _check_masks(held, found)
        calls = [call, _doubled(call)] if dynamic_batch else [call]
        error = max(_compare(runtime, written, baked, each) for each in calls)
        for file in Path(folder).iterdir():
            file.replace(path.with_name(file.name))
    orders = {name: find_order(weight) for name, weight in found.items()}
    return OnnxFile(path, {name: order for name, order in orders.items() if order.pattern != DENSE}, error)


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"writing ONNX needs the package {name!r}; install it with: pip install 'cutwork[export]'"
        ) from error


def _export(model: nn.Module, call: Call, path: Path, *, dynamic_batch: bool, opset: int | None) -> None:
    batch = torch.export.Dim(BATCH) if dynamic_batch else None
    shapes = None
    if batch is not None:
        args, kwargs = tree_map_only(Tensor, lambda tensor: {0: batch}, (tuple(call.args), dict(call.kwargs)))
        shapes = (*args, *kwargs.values())
    size = sum(held.nbytes for held in model.state_dict().values() if isinstance(held, Tensor))
    with torch.no_grad():
        torch.onnx.export(
            model,
            tuple(call.args),
            path,
            kwargs=dict(call.kwargs) or None,
            dynamo=True,
            verbose=False,
            dynamic_shapes=shapes,
            opset_version=opset,
            external_data=size > LARGEST_INSIDE,
        )


def _read_weights(onnx: ModuleType, path: Path) -> dict[str, Tensor]:
    graph = onnx.load(path).graph
    found = {each.name: onnx.numpy_helper.to_array(each, str(path.parent)) for each in graph.initializer}
    return {name: torch.from_numpy(np.array(held)) for name, held in found.items() if held.dtype.kind == "f"}


def _find_weights(model: nn.Module, written: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a model that have zeros as they were written; ValueError where one has other zeros there.

    The exporter renames those that it turns over, and scales those in front of a batch norm.
    """
    found = {}
    for name, parameter in model.named_parameters():
        kept = parameter.detach().cpu() != 0
        if kept.ndim < 2 or kept.all():
            continue
        same = [held for held in _turned(written.get(name), written) if held.shape == kept.shape]
        fitting = [held for held in same if torch.equal(held != 0, kept)]
        if not fitting:
            raise ValueError(
                f"{name} has {int((~kept).sum())} zeros, and no weight in the file has them; this is a defect of the "
                "exporter: try another opset, and please report it"
            )
        found[name] = fitting[0]
    return found


def _turned(named: Tensor | None, written: Mapping[str, Tensor]) -> Sequence[Tensor]:
    """Return what a weight may have become: what has its name, or anything as it is, or with its sides exchanged."""
    if named is not None:
        return [named, named.T] if named.ndim == 2 else [named]
    return [*written.values(), *(held.T for held in written.values() if held.ndim == 2)]


def _check_masks(held: Mapping[str, tuple[Pattern, Layout]], found: Mapping[str, Tensor]) -> None:
    """Raise ValueError where a weight breaks the n:m that it is to have."""
    for name, (pattern, layout) in held.items():
        weight = found.get(f"{name}.weight" if name else "weight")
        # The parts of an attention are one weight again, which has been compared as a whole.
        if weight is None or not isinstance(pattern, NM):
            continue
        if not pattern.allows(layout.to_matrix(weight != 0)):
            raise ValueError(f"{label(name)} does not keep {pattern} in the file; please report it")


def _compare(runtime: ModuleType, path: Path, model: nn.Module, call: Call) -> float:
    """Return how far outputs in the runtime lie from those of the model, relative to the largest; refuse too far."""
    options = runtime.SessionOptions()
    # Below errors it prints warnings of its own.
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    given = _tensors(call)
    if len(names) != len(given):
        raise ValueError(
            f"the file takes {len(names)} tensors, {', '.join(names)}, where {len(given)} were given; leave out what "
            "the model does not read"
        )
    found = session.run(None, {name: leaf.detach().cpu().numpy() for name, leaf in zip(names, given, strict=True)})
    with in_evaluation(model):
        expected = [leaf for leaf in tree_leaves(call(model)) if isinstance(leaf, Tensor)]
    error = max(_difference(one, torch.from_numpy(other)) for one, other in zip(expected, found, strict=True))
    if not error <= MOST_ERROR:
        raise ValueError(
            f"ONNX Runtime returns something else than the model, by {error:.2g} of the largest output; give an "
            "example that takes the same way through the model, or another opset"
        )
    return error


def _tensors(call: Call) -> list[Tensor]:
    return [leaf for leaf in tree_leaves((call.args, dict(call.kwargs))) if isinstance(leaf, Tensor)]


def _difference(expected: Tensor, found: Tensor) -> float:
    if expected.shape != found.shape:
        return float("inf")
    scale = expected.abs().max().double().clamp(min=1e-30) if expected.numel() else 1.0
    return float((expected.cpu().double() - found.double()).abs().max() / scale) if expected.numel() else 0.0


def _doubled(call: Call) -> Call:
    """Return a call with twice as long a batch."""

    def double(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor])

    return Call(*tree_map_only(Tensor, double, (call.args, dict(call.kwargs))))
