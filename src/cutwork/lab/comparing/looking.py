"""A look at trained models: their masks, and how fast each is in its fastest forms on this machine."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import numpy as np
import torch
from torch import nn

from cutwork.costs.pictures import coarsen
from cutwork.data.feed import Feed
from cutwork.lab.comparing.findings import Finding
from cutwork.lab.evaluating import make_fast, only_judged
from cutwork.lab.opening import load_trained, open_feed
from cutwork.lab.processes import Processes, join
from cutwork.layers.sparse import WeightFacts
from cutwork.layers.swap import sparse_layers
from cutwork.speed.plan import LayerPlan
from cutwork.speed.timing import Timing, measure

logger = logging.getLogger(__name__)

# Seconds for which each model is timed.
SECONDS = 1.0


@final
@dataclass(frozen=True)
class Layer:
    """One sparse layer: its facts, the sizes of its mask as a matrix, and the mask, coarse where it is large."""

    facts: WeightFacts
    outputs: int
    inputs: int
    mask: np.ndarray


@final
@dataclass
class Look:
    """What is to be seen of a trained model: each sparse layer with its mask; how fast it is, and why, if asked for.

    `missing` says why there is nothing to see.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    plan: dict[str, LayerPlan] = field(default_factory=dict)
    forward: Timing | None = None
    batch: int = 0
    missing: str = ""


def look_at(runs: Sequence[Finding], *, measured: bool = False) -> dict[str, Look]:
    """Look at the best model of each run; with `measured` fold and pack it, and time a batch of it among all others.

    Models that were trained dense are timed as they are. A run whose model or data is not here says so.
    """
    looks: dict[str, Look] = {}
    models: dict[str, Any] = {}
    feeds: dict[Any, Feed] = {}
    batch = min((run.training.running.batch for run in runs), default=1)
    with join("auto" if measured else "cpu") as processes:
        for run in runs:
            look = looks[run.name] = Look()
            try:
                model, inputs = _open(run, batch, feeds, processes)
            except (OSError, ValueError, ModuleNotFoundError) as error:
                look.missing = str(error)
                continue
            layers = sparse_layers(model)
            for name, layer in layers.items():
                mask = layer.sparsity.mask_matrix().cpu().numpy()
                look.layers[name] = Layer(layer.describe_weight(), mask.shape[0], mask.shape[1], coarsen(mask))
            if measured:
                if layers:
                    look.plan = {row.layer: row for row in make_fast(model, inputs).rows}
                models[run.name] = partial(_run, model, inputs)
                look.batch = len(inputs)
        for name, timing in measure(models, seconds=SECONDS * len(models)).items():
            looks[name].forward = timing
    return looks


def _open(run: Finding, batch: int, feeds: dict[Any, Feed], processes: Processes) -> tuple[nn.Module, torch.Tensor]:
    training = only_judged(run.training, batch)
    key = training.reading
    if key not in feeds:
        feeds[key] = open_feed(training, processes)
    model = load_trained(run.place.path, feeds[key], processes.device)
    return model, next(feeds[key].testing())[0].to(processes.device)


@torch.no_grad()
def _run(model: nn.Module, inputs: torch.Tensor) -> None:
    model(inputs)
    if inputs.is_cuda:
        torch.cuda.synchronize()
