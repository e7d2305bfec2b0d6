"""Where the time of a pass over a model goes: into which of its layers, and how much outside of them."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import final

from torch import nn

from cutwork.speed.timing import Clock, spread_of

OUTSIDE = ""


@final
@dataclass(frozen=True)
class Profile:
    """The seconds of a pass that each layer takes, all its calls together, and those outside of all these layers.

    `spread` is how far whole passes lie apart: the distance of the quartiles as a share of the median.
    """

    layers: dict[str, float]
    outside_s: float
    spread: float

    @property
    def total_s(self) -> float:
        """Return the seconds of a pass."""
        return sum(self.layers.values()) + self.outside_s


def profile(
    passes: Mapping[str, tuple[Callable[[], object], Mapping[str, nn.Module]]],
    *,
    seconds: float,
    min_rounds: int = 5,
    max_rounds: int = 300,
    clock: Clock = perf_counter,
) -> dict[str, Profile]:
    """Return where the time of several passes goes, each given with the layers it calls, in about `seconds` together.

    They take turns, so that what slows the machine for a while slows all. A pass is cut where a layer begins or ends,
    and the time of each piece is its median over the rounds: what stops a pass now and then, such as another process
    on the same core, hits some piece of most passes, but no piece in most of them. Taken whole, a pass may be stopped
    each time, and a layer taken alone finds its weight and inputs in the caches. The cuts take time themselves, so
    each pass is timed without any as well.
    """
    cuts = {name: _Cuts(clock) for name in passes}
    whole: dict[str, list[float]] = {name: [] for name in passes}
    for run, _ in passes.values():
        run()
    end, rounds = clock() + seconds, 0
    while rounds < min_rounds or (clock() < end and rounds < max_rounds):
        rounds += 1
        for name, (run, layers) in passes.items():
            # Untimed, so that each finds the caches as it leaves them itself.
            run()
            start = clock()
            run()
            whole[name].append(clock() - start)
            cuts[name].run(run, layers)
    return {name: _profile(cuts[name].medians(), whole[name], layers) for name, (_, layers) in passes.items()}


def _profile(times: Counter[str], whole: list[float], layers: Iterable[str]) -> Profile:
    outside = times.pop(OUTSIDE, 0.0)
    # The time of the cuts falls outside.
    without_cuts = max(0.0, median(whole) - sum(times.values()))
    return Profile({name: times.get(name, 0.0) for name in layers}, min(outside, without_cuts), spread_of(whole))


class _Cuts:
    """Collects the times of the pieces of runs; the third piece of a layer is the third in every run."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._times: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
        self._runs = 0
        self._running: list[str] = []
        self._places: Counter[str] = Counter()
        self._since = 0.0

    def run(self, run: Callable[[], object], layers: Mapping[str, nn.Module]) -> None:
        handles = []
        for name, layer in layers.items():
            handles += [
                layer.register_forward_pre_hook(lambda *_, name=name: self._cut(begins=name), prepend=True),
                layer.register_forward_hook(lambda *_: self._cut()),
            ]
        self._running, self._places = [OUTSIDE], Counter()
        self._runs += 1
        try:
            self._since = self._clock()
            run()
            self._note()
        finally:
            for handle in handles:
                handle.remove()

    def medians(self) -> Counter[str]:
        """Return the seconds of each name; of a piece that only some runs have, its share."""
        total: Counter[str] = Counter()
        for (name, _), times in self._times.items():
            total[name] += median(times) * len(times) / self._runs  # pyrefly: ignore
        return total

    def _cut(self, begins: str | None = None) -> None:
        self._note()
        if begins is None:
            self._running.pop()
        else:
            self._running.append(begins)
        self._since = self._clock()

    def _note(self) -> None:
        name = self._running[-1]
        self._times[name, self._places[name]].append(self._clock() - self._since)
        self._places[name] += 1
