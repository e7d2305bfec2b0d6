"""How good a trained model is, as it is and in its fastest forms on this machine."""

import json
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import final

import torch
from torch import nn

from cutwork.data.feed import Feed
from cutwork.lab.judging import Judgement, judge
from cutwork.lab.opening import open_feed
from cutwork.lab.processes import Processes, join
from cutwork.lab.subject import find_trained, load_checkpoint
from cutwork.lab.training import Training
from cutwork.layers.composite import Composite
from cutwork.layers.swap import sparse_layers
from cutwork.speed.folding import fold
from cutwork.speed.packing import pack
from cutwork.speed.plan import Plan


@final
@dataclass(frozen=True)
class Form:
    """How good a model is in one form, and how many test examples a second it judges, reading them included."""

    name: str
    judgement: Judgement
    examples_per_second: float


@final
@dataclass(frozen=True)
class Evaluation:
    """A model as it was trained, and folded and packed, with what `pack` chose."""

    forms: tuple[Form, ...]
    plan: str

    def __str__(self) -> str:
        lines = [f"{'':12}{'accuracy':>10}{'top 5':>10}{'loss':>10}{'examples/s':>12}"]
        for form in self.forms:
            told = form.judgement
            lines.append(
                f"{form.name:12}{told.accuracy:>10.2%}{told.top5:>10.2%}{told.loss:>10.4f}{form.examples_per_second:>12,.0f}"
            )
        return "\n".join([*lines, *(["", self.plan] if self.plan else [])])

    def to_json(self) -> str:
        """Return the numbers as a JSON object."""
        return json.dumps({form.name: asdict(form) for form in self.forms}, indent=2)


def evaluate_run(path: Path, *, checkpoint: str = "best", packed: bool = False, batch: int | None = None) -> Evaluation:
    """Judge the model of a run, or of a checkpoint of one, on its test data.

    With `packed` it is also judged folded and in the forms that are fastest here.
    """
    file, trained = find_trained(path, checkpoint)
    training = only_judged(trained, batch)
    with join(training.running.device) as processes:
        feed = open_feed(training, processes)
        model = load_checkpoint(file, training, feed, processes.device)
        forms, plan = [_judge("as trained", model, feed, processes)], ""
        if packed:
            if not sparse_layers(model):
                raise ValueError(f"the model of {path} has no sparse layer, so there is nothing to pack")
            plan = str(make_fast(model, next(feed.testing())[0].to(processes.device)))
            forms.append(_judge("packed", model, feed, processes))
    return Evaluation(tuple(forms), plan)


def only_judged(training: Training, batch: int | None = None) -> Training:
    """Return the options of a run whose model is judged, on so many examples at once."""
    if batch is not None:
        training = replace(training, running=replace(training.running, test_batch=batch))
    # A model is judged on test images alone, whatever was done to those it learned from.
    return replace(training, reading=replace(training.reading, augment="", repeats=1, download=False))


def make_fast(model: nn.Module, inputs: torch.Tensor) -> Plan:
    """Fold and pack a model that has sparse layers, in place, and return what was chosen for each and why."""
    if any(isinstance(part, Composite) for part in model.modules()):
        fold(model)
    return pack(model, inputs)


def _judge(name: str, model: nn.Module, feed: Feed, processes: Processes) -> Form:
    # What is done for the first time takes longer.
    with torch.no_grad():
        model(next(feed.testing())[0].to(processes.device))
    begin = perf_counter()
    judgement = judge(model, feed, processes, nullcontext)
    return Form(name, judgement, judgement.count / (perf_counter() - begin))
