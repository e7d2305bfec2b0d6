"""A model in training: what a step changes, and the step itself."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cutwork.data.feed import Batch, Feed, chance_of
from cutwork.distributed import whole
from cutwork.evaluation import copy_model
from cutwork.lab.building import build_model, make_optimizer, make_sparse
from cutwork.lab.objective import Objective, count_right, flat_scores
from cutwork.lab.opening import load_trained
from cutwork.lab.processes import Processes
from cutwork.lab.sharding import check_shardable, shard
from cutwork.lab.training import Training
from cutwork.speed.fusion import fuse

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@final
class Learner:
    """A model, what moves its masks, updates its weights and averages them; made from a run's options."""

    def __init__(self, training: Training, feed: Feed, processes: Processes, *, steps: int) -> None:
        given = training.running
        self.training, self.processes = training, processes
        self.is_sharded = given.shard and processes.world > 1
        if given.shard:
            check_shardable(training)
        self.model, larger = build_model(training, feed, processes.device)
        self.sparsifier = make_sparse(self.model, training, steps, larger)
        if given.fused:
            fuse(self.model, feed.example.to(processes.device))
        if given.sync_bn and processes.world > 1:
            if processes.device.type == "cpu":
                raise ValueError("sync_bn=True: PyTorch has these norms for GPUs only; leave it out, or train on GPUs")
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        # The whole model, in the one process that writes it.
        self.twin = copy_model(self.model) if self.is_sharded and processes.is_first else None
        if self.is_sharded:
            shard(self.model, processes)
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
        self.objective = Objective(training.optimizing, self._load_teacher(feed))

    @property
    def judged(self) -> nn.Module:
        """Return the model, or the average of its weights where there is one."""
        return self.model if self.average is None else self.average.module

    def set_rates(self, factor: float) -> None:
        """Multiply the learning rate of each group, as it was in the beginning."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def take_step(self, batches: list[Batch], step: int, *, look: bool = False) -> dict[str, Tensor]:
        """Update the model once, and return what was seen on the way; with `look` how long the gradient is, too."""
        given = self.training.optimizing
        self.wrapped.train()
        torch.manual_seed(chance_of(self.training.running.seed, step, self.processes.rank).initial_seed())
        self.optimizer.zero_grad(set_to_none=True)
        losses, right, seen = [], [], 0
        for number, (x, y) in enumerate(batches, 1):
            with self._waiting(is_last=number == len(batches)), self.autocast():
                scores = flat_scores(self.wrapped(x))
                loss = self.objective(scores, y, x)
                self.scaler.scale(loss / len(batches)).backward()
            losses.append(loss.detach())
            right.append(count_right(scores.detach(), y))
            seen += len(y)
        found = {"loss": torch.stack(losses).mean(), "accuracy": torch.stack(right).sum() / seen}
        if given.clip or look:
            self.scaler.unscale_(self.optimizer)
            found["gradient_norm"] = whole(nn.utils.clip_grad_norm_(self.model.parameters(), given.clip or math.inf))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return found

    def autocast(self) -> Any:
        """Return the context in which the model computes in the precision of the run."""
        dtype = PRECISIONS.get(self.training.running.precision)
        return torch.autocast(self.processes.device.type, dtype) if dtype else nullcontext()

    def _wrap(self) -> nn.Module:
        model = self.model
        if self.processes.world > 1 and not self.is_sharded:
            model = DistributedDataParallel(model)
        return torch.compile(model) if self.training.running.compiled else model  # pyrefly: ignore

    def _waiting(self, *, is_last: bool) -> Any:
        """Let processes exchange gradients only after the last batch of a step."""
        if isinstance(self.wrapped, DistributedDataParallel) and not is_last:
            return self.wrapped.no_sync()
        return nullcontext()

    def _load_teacher(self, feed: Feed) -> nn.Module | None:
        if self.training.optimizing.teacher is None:
            return None
        return load_trained(Path(self.training.optimizing.teacher), feed, self.processes.device)
