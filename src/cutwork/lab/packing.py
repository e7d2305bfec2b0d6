"""A trained model made ready for inference on this machine: folded, packed, and saved for `cutwork.load`."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from glob import escape
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from cutwork.evaluation import copy_model
from cutwork.files.checkpoint import save
from cutwork.lab.objective import flat_scores
from cutwork.lab.stopwatch import until_done
from cutwork.lab.subject import FOLDED, TRAINING, find_subject
from cutwork.layers.composite import Composite
from cutwork.layers.swap import sparse_layers
from cutwork.sparsity.compressed import FixedIndex
from cutwork.sparsity.fixed import Fixed
from cutwork.speed.folding import fold
from cutwork.speed.forms import find_precisions, form_of
from cutwork.speed.packing import pack
from cutwork.speed.plan import Plan
from cutwork.speed.timing import Timing, measure
from cutwork.speed.tolerance import MEASURED, loosest, precision_of
from cutwork.text import in_columns
from cutwork.training.baking import bake
from cutwork.training.sparsify import sparsify

SECONDS = 2.0
MIB = 2**20


@final
@dataclass(frozen=True)
class Packed:
    """What packing a model came to: how large it is dense and packed, how fast, and how far its results lie apart.

    `difference` is the distance of the packed model's outputs from those as trained, as a share of their norm; times
    are of a forward pass of `batch` examples, measured in turns.
    """

    file: str
    batch: int
    dense_bytes: int
    packed_bytes: int
    difference: float
    times: dict[str, Timing]
    folded: tuple[str, ...]
    plan: Plan

    def __str__(self) -> str:
        """Write it as tables."""
        dense_s = self.times["dense"].median_s
        rows = [["", "ms", "dense is"]]
        for name, timing in self.times.items():
            about = "" if timing.is_steady else "~"
            rows.append([name, f"{about}{timing.median_s * 1e3:.3g}", f"{about}{dense_s / timing.median_s:.2f}x"])
        return "\n".join(
            [
                str(self.plan),
                "",
                *(f"folded: {name}" for name in self.folded),
                f"size: {self.dense_bytes / MIB:.2f} MiB dense, {self.packed_bytes / MIB:.2f} MiB in {self.file}",
                f"outputs differ by {self.difference:.1e} from those as trained",
                f"a forward pass of a batch of {self.batch}, and how many times longer the dense model takes:",
                *in_columns(rows, "<>>"),
            ]
        )

    def to_json(self) -> str:
        """Return the numbers as a JSON object."""
        return json.dumps(asdict(self), indent=2)


def pack_trained(
    what: str,
    output: Path,
    *,
    checkpoint: str = "best",
    precisions: Sequence[str] = (),
    data: str | None = None,
    batch: int = 1,
    device: str = "auto",
    seconds: float = 0.2,
) -> Packed:
    """Fold and pack the model of a run or of a checkpoint, see that it computes what it did, and save it.

    Nothing is written unless the outputs are equal, up to what rounding explains, and a file is never written over.
    """
    _check_output(output)
    if not Path(what).exists():
        raise FileNotFoundError(f"there is no {what}; give the folder of a run, or a checkpoint in it")
    subject = find_subject(what, checkpoint=checkpoint, data=data, batch=batch, device=device)
    model, inputs = subject.model, subject.inputs
    if not sparse_layers(model):
        raise ValueError(f"the model of {what} has no sparse layer, so there is nothing to pack")
    trained = copy_model(model)
    dense = copy_model(model)
    bake(dense)
    folded: tuple[str, ...] = ()
    if any(isinstance(part, Composite) for part in model.modules()):
        folded = tuple(each.module for each in fold(model) if not each.reason)
    _fix_masks(model)
    plan = pack(model, inputs, precisions=precisions, seconds=seconds)
    difference = _difference(_run(model, inputs), _run(trained, inputs))
    _check_equal(difference, model, inputs)
    forms = {"dense": dense, "as trained": trained, "packed": model}
    runs = {name: until_done(partial(_run, form, inputs), inputs.device) for name, form in forms.items()}
    times = measure(runs, seconds=SECONDS)
    save(model, output, extra={TRAINING: subject.training.to_json(), FOLDED: json.dumps(folded)})
    sizes = (sum(held.nbytes for held in dense.state_dict().values()), output.stat().st_size)
    return Packed(str(output), len(inputs), *sizes, difference, times, folded, plan)


def _check_output(output: Path) -> None:
    if output.exists():
        raise FileExistsError(f"{output} is there already; name another file")
    folder = output.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {output.parent} to write {output.name} to")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written to; name a file in another folder")


def _fix_masks(model: nn.Module) -> None:
    """Hold masks fixed that were chosen in each step: then there is a form that stores only what they keep."""
    layers = sparse_layers(model)
    if all(isinstance(layer.sparsity, Fixed | FixedIndex) for layer in layers.values()):
        return
    patterns = {escape(name): layer.sparsity.pattern for name, layer in layers.items()}
    masks = bake(model)
    sparsify(model, patterns, masks=masks, method="static", rescale=False)


@torch.no_grad()
def _run(model: nn.Module, inputs: Tensor) -> Tensor:
    return flat_scores(model(inputs))


def _difference(found: Tensor, expected: Tensor) -> float:
    apart = (found.double() - expected.double()).norm()
    return float(apart / expected.double().norm().clamp(min=1e-30))


def _check_equal(difference: float, model: nn.Module, inputs: Tensor) -> None:
    forms = {form_of(layer) for layer in sparse_layers(model).values()}
    own = precision_of(next(model.parameters()).dtype)
    allowed = loosest(MEASURED, [own, *find_precisions(forms)]).model
    if not difference <= allowed:
        raise ValueError(
            f"the packed model's outputs differ by {difference:.1e} from those as trained, more than the {allowed:g} "
            "that rounding explains, so nothing was written; leave out precisions"
        )
