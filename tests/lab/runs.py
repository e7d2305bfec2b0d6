"""What the tests of runs share: options of a short one, one that stops itself, and comparing what came out."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

SHORT: dict[str, Any] = {"model": "mlp:hidden=(32,32)", "data": "digits", "batch": 256, "epochs": 3, "log_every": 2}


class StopAfter:
    """A watch that asks the program to stop after a step, as a terminal or a scheduler does."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, done: int, steps: int, record: Any) -> None:
        if done == self.at:
            os.kill(os.getpid(), signal.SIGTERM)

    def epoch(self, done: int, steps: int, judged: Any) -> None:
        pass

    def tell(self, what: str) -> None:
        pass


def equal(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
