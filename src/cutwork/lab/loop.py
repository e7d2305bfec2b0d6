"""The training loop: from a run's options to its folder, from the beginning or from where it was stopped.

Whatever happens by chance follows from the seed and the step, so a run that was stopped anywhere, and goes on from its
last checkpoint, ends as one that was not.
"""

import logging
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cutwork.costs.flops import flops
from cutwork.data import make_feed
from cutwork.data.feed import Batch, Feed, Feeding, chance_of
from cutwork.files.checkpoint import load, save
from cutwork.lab.building import build_model, make_optimizer, make_sparse
from cutwork.lab.judging import Judgement, judge
from cutwork.lab.objective import Objective, count_right, flat_labels, flat_scores
from cutwork.lab.processes import Processes, join
from cutwork.lab.rates import rate_at
from cutwork.lab.records import Logs, Meter, Watch, check_logs, open_logs
from cutwork.lab.run_folder import RunFolder
from cutwork.lab.training import Training
from cutwork.layers.swap import sparse_layers
from cutwork.speed.fusion import fuse

logger = logging.getLogger(__name__)

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What the options of a run say about data that batches are made by.
READ = ("repeats", "train_crop", "test_crop", "test_resize", "interpolation", "context", "workers")
# Forward, and twice as much backward: the gradients of inputs and of weights.
PASSES = 3


class Stopped(Exception):  # noqa: N818
    """A run was asked to stop, has saved what it had, and can go on from there."""


def train(training: Training, folder: Path, *, resume: bool = False, watch: Watch | None = None) -> Mapping[str, Any]:
    """Train as the options say, write everything into a folder, and return what it came to.

    A run that is to be resumed goes on from its last checkpoint, if it has one; one that has ended is left as it is.
    """
    place = RunFolder(folder)
    with join(training.running.device) as processes:
        if resume and place.is_done:
            return place.read_summary()
        place.check_free(resume=resume)
        run = Run(training, place, processes, watch)
        # Only what can be run is written down.
        if processes.is_first and not place.is_begun:
            place.begin(training)
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

        self.model, self.larger = build_model(training, self.feed, processes.device)
        self.sparsifier = make_sparse(self.model, training, self.steps, self.larger)
        if given.fused:
            fuse(self.model, self.feed.example.to(processes.device))
        if given.sync_bn and processes.world > 1:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self.optimizer = make_optimizer(self.model, training.optimizing)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(given.ema)) if given.ema else None
        if self.sparsifier is not None:
            self.sparsifier.attach(self.optimizer)
            if self.average is not None:
                self.sparsifier.take_along(self.average)
        # Gradients of 16 bits overflow and vanish; those of bf16 have the range of 32.
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=given.precision == "fp16")
        self.wrapped = self._wrap()
        self.objective = Objective(training.optimizing, self._load_teacher())
        self.meter = Meter(given.log_every, watch, self.steps)
        self.cost = self._cost_of_step()

    def to_the_end(self, *, resume: bool) -> Mapping[str, Any]:
        """Take all steps that are left, judge and save the model after each epoch, and return what the run came to."""
        if resume and self.folder.last.exists():
            self._load()
        if self.processes.is_first:
            self.folder.forget_after(self.step)
        with open_logs(self.given.log, self.folder, is_first=self.processes.is_first) as logs, listening() as is_asked:
            while self.step < self.steps:
                epoch, place = divmod(self.step, self.steps_of_epoch)
                for batches in self._batches(epoch, place):
                    self._set_rates()
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
                        self._save(self.folder.last)
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
        self.cost = self._cost_of_step()
        logs.add(self._describe(judged.as_record(), epoch))
        self.meter.tell_epoch(self.step, judged)
        if judged.accuracy > self.best:
            self.best = judged.accuracy
            self._save_best()
        if (epoch + 1) % self.given.save_every == 0 or self.step == self.steps:
            self._save(self.folder.last)

    def _batches(self, epoch: int, place: int) -> Iterator[list[Batch]]:
        """Yield the batches of each step of an epoch that is left, on the device."""
        size, device = self.training.optimizing.accumulate, self.processes.device
        batches = self.feed.training(epoch, place * size)
        for _ in range(place, self.steps_of_epoch):
            yield [(x.to(device), flat_labels(y.to(device))) for x, y in islice(batches, size)]

    def _take_step(self, batches: list[Batch]) -> dict[str, Tensor]:
        """Update the model once, and return what was seen on the way."""
        given = self.training.optimizing
        self.wrapped.train()
        torch.manual_seed(chance_of(self.given.seed, self.step, self.processes.rank).initial_seed())
        self.optimizer.zero_grad(set_to_none=True)
        losses, right, seen = [], [], 0
        for number, (x, y) in enumerate(batches, 1):
            with self._waiting(is_last=number == len(batches)), self._autocast():
                scores = flat_scores(self.wrapped(x))
                loss = self.objective(scores, y, x)
                self.scaler.scale(loss / len(batches)).backward()
            losses.append(loss.detach())
            right.append(count_right(scores.detach(), y))
            seen += len(y)
        found = {"loss": torch.stack(losses).mean(), "accuracy": torch.stack(right).sum() / seen}
        if given.clip or self.meter.is_due(self.step + 1):
            self.scaler.unscale_(self.optimizer)
            found["gradient_norm"] = nn.utils.clip_grad_norm_(self.model.parameters(), given.clip or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.meter.count(seen * self.processes.world)
        return found

    def _set_rates(self) -> None:
        given = self.training.optimizing
        factor = rate_at(self.step, steps=self.steps, steps_of_epoch=self.steps_of_epoch, given=given)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def _judge(self) -> Judgement:
        """Judge the model, or the average of its weights where there is one."""
        model = self.model if self.average is None else self.average.module
        return judge(model, self.feed, self.processes, self._autocast)

    def _describe(self, record: Mapping[str, Any], epoch: int | None = None) -> dict[str, Any]:
        """Return a line of the curves: where the run is, and what was seen there."""
        facts = [layer.describe_weight() for layer in sparse_layers(self.model).values()]
        sizes = sum(math.prod(fact.shape) for fact in facts)
        return {
            "step": self.step,
            **({} if epoch is None else {"epoch": epoch + 1}),
            "samples": self.step * self.samples_of_step,
            "flops": self.spent,
            "density": sum(fact.num_kept for fact in facts) / sizes if sizes else 1.0,
            "lr": self.optimizer.param_groups[0]["lr"],
            **record,
        }

    def _cost_of_step(self) -> float:
        """Return the operations of a step, with what the masks keep now."""
        return PASSES * self.samples_of_step * flops(self.model, self.feed.example.to(self.processes.device)).sparse

    def _save(self, file: Path) -> None:
        """Save all that it takes to go on."""
        if not self.processes.is_first:
            return
        extra: dict[str, Any] = {"step": self.step, "best": self.best, "spent": self.spent, "cost": self.cost}
        if self.average is not None:
            extra["average"] = self.average.state_dict()
        if self.scaler.is_enabled():
            extra["scaler"] = self.scaler.state_dict()
        save(self.model, file, sparsifier=self.sparsifier, optimizer=self.optimizer, extra=extra)

    def _save_best(self) -> None:
        """Save the model that was judged, alone."""
        if self.processes.is_first:
            model = self.model if self.average is None else self.average.module
            save(model, self.folder.best, extra={"step": self.step, "training": self.training.to_json()})

    def _load(self) -> None:
        found = load(self.folder.last, self.model, sparsifier=self.sparsifier, optimizer=self.optimizer).extra
        self.step, self.best = found["step"], found["best"]
        self.spent, self.cost = found["spent"], found["cost"]
        if self.average is not None:
            self.average.load_state_dict(found["average"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(found["scaler"])

    def _wrap(self) -> nn.Module:
        model = self.model
        if self.processes.world > 1:
            model = DistributedDataParallel(model)
        return torch.compile(model) if self.given.compiled else model  # pyrefly: ignore

    def _waiting(self, *, is_last: bool) -> Any:
        """Let processes exchange gradients only after the last batch of a step."""
        if isinstance(self.wrapped, DistributedDataParallel) and not is_last:
            return self.wrapped.no_sync()
        return nullcontext()

    def _autocast(self) -> Any:
        dtype = PRECISIONS.get(self.given.precision)
        return torch.autocast(self.processes.device.type, dtype) if dtype else nullcontext()

    def _load_teacher(self) -> nn.Module | None:
        if self.training.optimizing.teacher is None:
            return None
        return load_trained(Path(self.training.optimizing.teacher), self.feed, self.processes.device)


def open_feed(training: Training, processes: Processes) -> Feed:
    """Return the batches of a run, of which each process gets its own."""
    given, running = training.reading, training.running
    asked = {name: getattr(given, name) for name in READ}
    feeding = Feeding(
        batch=running.batch,
        test_batch=running.test_batch,
        seed=running.seed,
        augment=tuple(name.strip() for name in given.augment.split(",") if name),
        rank=processes.rank,
        world=processes.world,
        **asked,
    )
    return make_feed(given.data, feeding, given.data_folder, download=given.download)


def load_trained(folder: Path, feed: Feed, device: torch.device, *, checkpoint: str = "best") -> nn.Module:
    """Return the model of a run, as it was when it was best, or last."""
    place = RunFolder(folder)
    training = place.read_config()
    file = place.path / f"{checkpoint}.safetensors"
    if not file.exists():
        raise FileNotFoundError(f"{folder} has no {file.name} yet; the run writes it after its first epoch")
    model, _ = build_model(replace(training, weights=None), feed, device)
    load(file, model)
    return model.eval()


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
