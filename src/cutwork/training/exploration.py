"""How much of the space of masks a training run has visited."""

from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor


@final
@dataclass
class Exploration:
    """The masks of one layer over time, in three sets and a list of turnovers."""

    first: Tensor
    ever: Tensor
    always: Tensor
    now: Tensor
    turnovers: list[float] = field(default_factory=list)

    @classmethod
    def begin(cls, mask: Tensor) -> "Exploration":
        """Start with the first mask."""
        return cls(mask.clone(), mask.clone(), mask.clone(), mask.clone())

    def visit(self, mask: Tensor) -> None:
        """Take in the mask after a move."""
        kept = int(self.now.sum())
        self.turnovers.append(int((self.now & ~mask).sum()) / kept if kept else 0.0)
        self.ever |= mask
        self.always &= mask
        self.now = mask.clone()

    @property
    def itop_rate(self) -> float:
        """Return the share of all weights that have been kept at some time.

        Reference: Liu et al., Do we actually need dense over-parameterization?, 2021.
        """
        return float(self.ever.float().mean())

    @property
    def always_rate(self) -> float:
        """Return the share of all weights that have been kept the whole time."""
        return float(self.always.float().mean())

    @property
    def overlap(self) -> float:
        """Return the share of the present mask that was in the first one."""
        return float((self.now & self.first).sum() / self.now.sum().clamp(min=1))

    @property
    def turnover(self) -> float:
        """Return the mean share of a mask that a move replaced."""
        return sum(self.turnovers) / len(self.turnovers) if self.turnovers else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors and a list."""
        sets = {"first": self.first, "ever": self.ever, "always": self.always, "now": self.now}
        return {**sets, "turnovers": list(self.turnovers)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], device: torch.device) -> "Exploration":
        """Undo `state_dict`, on the device of the layer."""
        tensors = {
            name: torch.as_tensor(state[name]).to(device, copy=True) for name in ("first", "ever", "always", "now")
        }
        return cls(**tensors, turnovers=list(state["turnovers"]))
