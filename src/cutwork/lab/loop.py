"""The training loop: from a run's options to its folder, from the beginning or from where it was stopped.

Whatever happens by chance follows from the seed and the step, so a run that was stopped anywhere, and goes on from its
last checkpoint, ends as one that was not.
"""

import logging
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, final

import torch

from cutwork.costs.flops import flops
from cutwork.data.feed import Batch
from cutwork.files.checkpoint import load, read_extra, save
from cutwork.lab.budget import settle, share
from cutwork.lab.judging import Judgement, judge
from cutwork.lab.learner import Learner
from cutwork.lab.objective import flat_labels
from cutwork.lab.opening import open_feed
from cutwork.lab.processes import Processes, is_first, join
from cutwork.lab.rates import rate_at
from cutwork.lab.records import Logs, Meter, Watch, check_logs, open_logs
from cutwork.lab.run_folder import RunFolder
from cutwork.lab.sharding import REST, find_parts, gather, load_parts, save_parts, share_statistics
from cutwork.lab.training import Training
from cutwork.layers.swap import sparse_layers

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Forward, and twice as much backward: the gradients of inputs and of weights.
PASSES = 3
# By what a checkpoint tells how many examples all processes together have in a batch.
BATCH = "examples of a batch"


class Stopped(Exception):  # noqa: N818
    """A run was asked to stop, has saved what it had, and can go on from there."""


def train(training: Training, folder: Path, *, resume: bool = False, watch: Watch | None = None) -> Mapping[str, Any]:
    """Train as the options say, write everything into a folder, and return what it came to.

    A run that is to be resumed goes on from its last checkpoint, if it has one; one that has ended is left as it is.
    """
    place = RunFolder(folder)
    if resume and place.is_done:
        return place.read_summary()
    place.check_free(resume=resume)
    settled, why = settle(training, place, watch) if is_first() else (training, "")
    with join(training.running.device) as processes:
        training, why = share(settled, why, processes)
        run = Run(share_out(training, place, processes) if resume else training, place, processes, watch)
        # Only what can be run is written down.
        if processes.is_first and not place.is_begun:
            place.begin(training, why)
        return run.to_the_end(resume=resume)


@final
class Run:
    """One training run, between its steps."""

    def __init__(self, training: Training, folder: RunFolder, processes: Processes, watch: Watch | None) -> None:
        given = training.running
        self.training, self.given, self.folder, self.processes = training, given, folder, processes
        check_logs(given.log)
        if given.deterministic:
            torch.use_deterministic_algorithms(True)
        self.feed = open_feed(training, processes)
        self.steps_of_epoch = self.feed.steps_of_epoch // training.optimizing.accumulate
        if not self.steps_of_epoch:
            raise ValueError(
                f"an epoch has {self.feed.steps_of_epoch} batches, fewer than make one step; accumulate less"
            )
        self.steps = math.ceil(given.epochs * self.steps_of_epoch) if given.steps is None else given.steps
        if self.steps < 1:
            raise ValueError(f"the run has {self.steps} steps; give epochs above 0, or steps from 1 on")
        self.samples_of_step = given.batch * processes.world * training.optimizing.accumulate
        self.step = 0
        self.best = -math.inf
        self.spent = 0.0
        self.judged: Judgement | None = None

        self.learner = Learner(training, self.feed, processes, steps=self.steps)
        self.meter = Meter(given.log_every, watch, self.steps)
        self.cost = self._cost_of_step()

    def to_the_end(self, *, resume: bool) -> Mapping[str, Any]:
        """Take all steps that are left, judge and save the model after each epoch, and return what the run came to."""
        if resume and (saved := find_last(self.folder)) is not None:
            self._load(saved)
        if self.processes.is_first:
            self.folder.forget_after(self.step)
        with open_logs(self.given.log, self.folder, is_first=self.processes.is_first) as logs, listening() as is_asked:
            while self.step < self.steps:
                epoch, place = divmod(self.step, self.steps_of_epoch)
                for batches in self._batches(epoch, place):
                    found = self._take_step(batches)
                    self.step += 1
                    self.spent += self.cost
                    if record := self.meter.read(self.step, found):
                        logs.add(self._describe(record, epoch))
                    is_over = self.step == self.steps
                    if is_over or self.step % self.steps_of_epoch == 0:
                        self._end_epoch(epoch, logs)
                    if is_over:
                        break
                    if self.processes.agree(is_asked()):
                        self._save()
                        done = f"stopped after step {self.step} of {self.steps}"
                        raise Stopped(f"{done}; to go on: cutwork train --resume {self.folder.path}")
        # A run that was stopped behind its last step was judged by then, but nobody has said how.
        judged = self.judged or self._judge()
        summary = self._describe(judged.as_record() | {"best_accuracy": self.best, **self.meter.totals()})
        if self.processes.is_first:
            self.folder.end(summary)
        return summary

    def _end_epoch(self, epoch: int, logs: Logs) -> None:
        """Judge the model, and save it if it is the best, or if it is time to."""
        judged = self.judged = self._judge()
        if self.learner.is_sharded:
            gather(self.learner.model, self.learner.twin)
        self.cost = self._cost_of_step()
        logs.add(self._describe(judged.as_record(), epoch))
        self.meter.tell_epoch(self.step, judged)
        if judged.accuracy > self.best:
            self.best = judged.accuracy
            self._save_best()
        if (epoch + 1) % self.given.save_every == 0 or self.step == self.steps:
            self._save()

    def _batches(self, epoch: int, place: int) -> Iterator[list[Batch]]:
        """Yield the batches of each step of an epoch that is left, on the device."""
        size, device = self.training.optimizing.accumulate, self.processes.device
        batches = self.feed.training(epoch, place * size)
        for _ in range(place, self.steps_of_epoch):
            yield [(x.to(device), flat_labels(y.to(device))) for x, y in islice(batches, size)]

    def _take_step(self, batches: list[Batch]) -> dict[str, torch.Tensor]:
        given = self.training.optimizing
        self.learner.set_rates(rate_at(self.step, steps=self.steps, steps_of_epoch=self.steps_of_epoch, given=given))
        found = self.learner.take_step(batches, self.step, look=self.meter.is_due(self.step + 1))
        self.meter.count(sum(len(y) for _, y in batches) * self.processes.world)
        return found

    def _judge(self) -> Judgement:
        """Judge the model, or the average of its weights where there is one."""
        learner = self.learner
        if learner.is_sharded:
            share_statistics(learner.model)
        return judge(learner.judged, self.feed, self.processes, learner.autocast, together=learner.is_sharded)

    def _describe(self, record: Mapping[str, Any], epoch: int | None = None) -> dict[str, Any]:
        """Return a line of the curves: where the run is, and what was seen there."""
        facts = [layer.describe_weight() for layer in sparse_layers(self.learner.model).values()]
        sizes = sum(math.prod(fact.shape) for fact in facts)
        return {
            "step": self.step,
            **({} if epoch is None else {"epoch": epoch + 1}),
            "samples": self.step * self.samples_of_step,
            "flops": self.spent,
            "density": sum(fact.num_kept for fact in facts) / sizes if sizes else 1.0,
            "lr": self.learner.optimizer.param_groups[0]["lr"],
            **record,
        }

    def _cost_of_step(self) -> float:
        """Return the operations of a step, with what the masks keep now; of a sharded model the first process knows."""
        model = self.learner.twin if self.learner.is_sharded else self.learner.model
        if model is None:
            return 0.0
        return PASSES * self.samples_of_step * flops(model, self.feed.example.to(self.processes.device)).sparse

    def _save(self) -> None:
        """Save all that it takes to go on."""
        learner = self.learner
        extra: dict[str, Any] = {"step": self.step, "best": self.best, "spent": self.spent, "cost": self.cost}
        extra[BATCH] = self.given.batch * self.processes.world
        if self.given.shard:
            name = f"step-{self.step:09d}"
            state = (learner.model, learner.optimizer, learner.sparsifier)
            save_parts(self.folder.parts, name, *state, extra, self.processes)
            return
        if not self.processes.is_first:
            return
        if learner.average is not None:
            extra["average"] = learner.average.state_dict()
        if learner.scaler.is_enabled():
            extra["scaler"] = learner.scaler.state_dict()
        save(
            *(learner.model, self.folder.last),
            sparsifier=learner.sparsifier,
            optimizer=learner.optimizer,
            extra=extra,
        )

    def _save_best(self) -> None:
        """Save the model that was judged, alone and whole."""
        model = self.learner.twin if self.learner.is_sharded else self.learner.judged
        if self.processes.is_first and model is not None:
            save(model, self.folder.best, extra={"step": self.step, "training": self.training.to_json()})

    def _load(self, saved: Path) -> None:
        learner = self.learner
        if self.given.shard:
            found = load_parts(saved, learner.model, learner.optimizer, learner.sparsifier, self.processes)
        else:
            found = load(saved, learner.model, sparsifier=learner.sparsifier, optimizer=learner.optimizer).extra
        self.step, self.best = found["step"], found["best"]
        self.spent, self.cost = found["spent"], found["cost"]
        if learner.average is not None:
            learner.average.load_state_dict(found["average"])
        if learner.scaler.is_enabled():
            learner.scaler.load_state_dict(found["scaler"])


def find_last(folder: RunFolder) -> Path | None:
    """Return what a run goes on from, a file, or a folder with a part of each process; None before it has saved."""
    return find_parts(folder.parts) or (folder.last if folder.last.exists() else None)


def share_out(training: Training, folder: RunFolder, processes: Processes) -> Training:
    """Return the options by which so many processes go on with the same batches, however many began with them."""
    saved = find_last(folder)
    together = None if saved is None else read_extra(saved / REST if saved.is_dir() else saved).get(BATCH)
    if together is None or together == training.running.batch * processes.world:
        return training
    if together % processes.world:
        raise ValueError(
            f"a step of the run in {folder.path} takes batches of {together} examples in all, which "
            f"{processes.world} processes cannot share out evenly; go on with another number of them"
        )
    return training.having(batch=together // processes.world)


@contextmanager
def listening() -> Iterator[Callable[[], bool]]:
    """Hear signals that ask the program to stop, and say later that one came; a second one stops it at once."""
    heard: list[int] = []

    def hear(number: int, frame: Any) -> None:
        if heard:
            raise KeyboardInterrupt
        heard.append(number)

    before = {}
    try:
        for number in SIGNALS:
            before[number] = signal.signal(number, hear)
    except ValueError:
        # Only the main thread may listen.
        logger.info("signals are not listened to outside the main thread")
    try:
        yield lambda: bool(heard)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
