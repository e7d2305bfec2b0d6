"""Runs in the order of what they came to, as a table for people and as JSON for programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from cutwork.lab.comparing.findings import Finding, best_within, differing, shares_of_dense
from cutwork.lab.sweeping.options import names_in
from cutwork.text import in_columns

HEAD = ("", "run", "best", "at the end", "density", "step", "of dense")


@final
@dataclass(frozen=True)
class Leaderboard:
    """Runs, the best first, with what their steps take, and their forward passes, where these were measured."""

    runs: Sequence[Finding]
    forward_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def step_shares(self) -> dict[str, float]:
        """Return the time of a step of each run as a share of the dense one's."""
        return shares_of_dense(self.runs, {run.name: run.step_ms for run in self.runs})

    @property
    def forward_shares(self) -> dict[str, float]:
        """Return the time of a forward pass of each run as a share of the dense one's."""
        return shares_of_dense(self.runs, self.forward_ms)

    def __str__(self) -> str:
        shares = self.step_shares
        rows = [
            (
                str(place),
                run.name,
                "" if run.best is None else f"{run.best:.2%}",
                f"{run.summary['test_accuracy']:.2%}" if run.summary else run.state,
                f"{run.density:.3g}",
                "" if run.step_ms is None else f"{run.step_ms:.3g} ms",
                "" if run.name not in shares else f"{shares[run.name]:.2f}",
            )
            for place, run in enumerate(self.runs, 1)
        ]
        return "\n".join(in_columns([HEAD, *rows], "><>>>>>"))

    def to_json(self) -> str:
        """Write the numbers for programs; what is not known is null."""
        steps, forwards = self.step_shares, self.forward_shares
        options = differing(self.runs)
        rows = [
            {
                "rank": place,
                "run": run.name,
                "folder": str(run.place.path),
                "state": run.state,
                "best_accuracy": run.best,
                "test_accuracy": (run.summary or {}).get("test_accuracy"),
                "test_loss": (run.summary or {}).get("test_loss"),
                "density": run.density,
                "flops": (run.summary or {}).get("flops"),
                "seconds": (run.summary or {}).get("seconds"),
                "step_ms": run.step_ms,
                "step_share": steps.get(run.name),
                "forward_ms": self.forward_ms.get(run.name),
                "forward_share": forwards.get(run.name),
                "options": {name: options[name][place - 1] for name in names_in(run.training, [*options])},
            }
            for place, run in enumerate(self.runs, 1)
        ]
        return json.dumps({"runs": rows, "best_within": self._best_within(steps, forwards)}, indent=2)

    def _best_within(self, steps: Mapping[str, float], forwards: Mapping[str, float]) -> dict[str, Any]:
        return {
            name: {str(share): run and run.name for share, run in best_within(self.runs, shares).items()}
            for name, shares in (("step", steps), ("forward", forwards))
            if shares
        }
