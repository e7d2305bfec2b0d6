"""How good a model is on test data."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import nn

from cutwork.data.feed import Batch, Feed
from cutwork.evaluation import in_evaluation
from cutwork.lab.objective import flat_labels, flat_scores
from cutwork.lab.processes import Processes

# The label may be among so many of the highest scores.
FEW = 5


@final
@dataclass(frozen=True)
class Judgement:
    """How often a model is right on test data, how often among its first five, its mean loss, and on how many."""

    accuracy: float
    top5: float
    loss: float
    count: int

    @property
    def bits(self) -> float:
        """Return the loss in bits: of a text, bits for each byte."""
        return self.loss / math.log(2)

    def as_record(self) -> dict[str, float]:
        """Return it as a line of a run's curves has it."""
        return {"test_accuracy": self.accuracy, "test_top5": self.top5, "test_loss": self.loss}


def judge(
    model: nn.Module, feed: Feed, processes: Processes, autocast: Callable[[], Any], *, together: bool = False
) -> Judgement:
    """Judge a model on all test data, which the processes share out.

    They run a model whose weights are shared out `together`: who has no batch left runs it beside the others.
    """
    right = torch.zeros(4, dtype=torch.float64)
    with in_evaluation(model):
        for x, y in _batches_together(model, feed, processes) if together else feed.testing():
            labels = flat_labels(y.to(processes.device))
            with autocast():
                scores = flat_scores(model(x.to(processes.device))).float()
            first = scores.topk(min(FEW, scores.shape[1])).indices == labels[:, None]
            loss = F.cross_entropy(scores, labels, reduction="sum")
            right += torch.stack([first[:, 0].sum(), first.sum(), loss, torch.tensor(len(labels))]).double().cpu()
    first_right, few_right, loss_sum, count = processes.sum(right).tolist()
    return Judgement(first_right / count, few_right / count, loss_sum / count, round(count))


def _batches_together(model: nn.Module, feed: Feed, processes: Processes) -> Iterator[Batch]:
    own = iter(feed.testing())
    while True:
        batch = next(own, None)
        if not processes.agree(batch is not None):
            return
        if batch is None:
            model(feed.example.to(processes.device))
        else:
            yield batch
