"""How long a run's step takes beside the dense model's, measured in turns in one process."""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from statistics import median
from time import perf_counter
from typing import Any, final

import torch

from cutwork.lab.building import build_model, make_sparse
from cutwork.lab.learner import Learner
from cutwork.lab.objective import flat_labels
from cutwork.lab.opening import open_feed
from cutwork.lab.processes import Processes
from cutwork.lab.training import Training
from cutwork.methods import STE, Supermask, find_method
from cutwork.speed.packing import pack
from cutwork.speed.timing import STEADY_SPREAD, Run, measure, spread_of

# What slows the machine for a while slows both of a pair, so pairs are compared.
SECONDS = 2.0
LEAST_ROUNDS, MOST_ROUNDS = 7, 100
# So long a run makes no move while it is measured but where a method moves in every step.
STEPS = 10**9
# Weights stay as they are, so that nothing overflows however often a step is taken.
RATE = 1e-9


@final
@dataclass(frozen=True)
class Times:
    """What the dense model takes, in seconds, and what share of that the sparse one takes, measured in pairs.

    Each is the median; `is_steady` says that the quartiles of the shares lie less than a tenth apart.
    """

    dense_s: float
    share: float
    is_steady: bool

    @property
    def sparse_s(self) -> float:
        """Return what the sparse model takes, in seconds."""
        return self.share * self.dense_s


@final
class Stopwatch:
    """Measures training steps, or forward passes, of a run with these options, whatever its pattern and density.

    Masks that stay between moves are measured so: moves come on top. A method that begins with whole weights is
    measured with the masks that it ends with.
    """

    def __init__(self, training: Training, place: Processes) -> None:
        self._of, self._place = training.sparse.budget_of, place
        self._training = replace(
            training,
            optimizing=replace(training.optimizing, lr=RATE, lr_min=0.0),
            running=replace(training.running, shard=False),
        )
        self._feed = open_feed(self._training, place)

    def __call__(self, training: Training) -> Times:
        """Measure a pattern at a density in turns with the dense model."""
        make = self._step if self._of == "step" else self._pass
        sparse = replace(training.sparse, sparse_from=0.0, dense_from=None, init=None)
        if self._of == "inference" or not _chooses_in_each_step(training):
            sparse = replace(sparse, method="static", every=None, begin=None, until=None, fraction=None)
        forms = {"dense": self._dense, "sparse": make(replace(self._training, sparse=sparse))}
        self._dense()
        start = perf_counter()
        self._dense()
        # Of each a run that counts and one that does not.
        rounds = min(max(int(SECONDS / 4 / (perf_counter() - start)), LEAST_ROUNDS), MOST_ROUNDS)
        taken: dict[str, list[float]] = {}
        measure(forms, seconds=SECONDS, min_rounds=rounds, max_rounds=rounds, times=taken)
        shares = [one / other for one, other in zip(taken["sparse"], taken["dense"], strict=True)]
        return Times(median(taken["dense"]), median(shares), spread_of(shares) <= STEADY_SPREAD)

    @cached_property
    def _dense(self) -> Run:
        make = self._step if self._of == "step" else self._pass
        given = self._training
        return make(
            replace(given, sparse=replace(given.sparse, pattern="dense"), running=replace(given.running, fused=False))
        )

    def _step(self, training: Training) -> Run:
        learner = Learner(training, self._feed, self._place, steps=STEPS)
        batches = islice(self._feed.training(0), training.optimizing.accumulate)
        device = self._place.device
        moved = [(x.to(device), flat_labels(y.to(device))) for x, y in batches]
        return until_done(lambda: learner.take_step(moved, 0), device)

    def _pass(self, training: Training) -> Run:
        model, _ = build_model(training, self._feed, self._place.device)
        inputs = next(self._feed.testing())[0].to(self._place.device)
        is_sparse = make_sparse(model, training, STEPS) is not None
        model.eval()
        if is_sparse:
            pack(model, inputs)

        @torch.no_grad()
        def infer() -> Any:
            return model(inputs)

        return until_done(infer, self._place.device)


def until_done(run: Run, device: torch.device) -> Run:
    """Return what runs and waits for its device, which on a GPU is still computing when a function returns.

    >>> until_done(lambda: 3, torch.device("cpu"))()
    3
    """

    def waiting() -> object:
        found = run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return found

    return waiting


def _chooses_in_each_step(training: Training) -> bool:
    """Say whether the mask is chosen anew in each forward pass."""
    return isinstance(find_method(training.sparse.method), STE | Supermask)
