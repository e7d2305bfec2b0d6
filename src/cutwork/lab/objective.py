"""What a run makes smaller: the loss of a batch, also with labels that are smoothed, mixed, or a teacher's."""

from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutwork.lab.training import Optimizing


@final
@dataclass(frozen=True)
class Objective:
    """The loss of a batch; with a teacher, partly how far the answers are from the teacher's."""

    given: Optimizing
    teacher: nn.Module | None = None

    def __call__(self, scores: Tensor, labels: Tensor, inputs: Tensor) -> Tensor:
        loss = _loss(scores, labels, self.given)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            wanted = flat_scores(self.teacher(inputs))
        weight, warmth = self.given.teacher_weight, self.given.temperature
        # The square makes up for gradients that are smaller the warmer it is.
        apart = F.kl_div(
            F.log_softmax(scores / warmth, 1), F.log_softmax(wanted / warmth, 1), reduction="batchmean", log_target=True
        )
        return (1 - weight) * loss + weight * warmth**2 * apart


def flat_scores(outputs: Any) -> Tensor:
    """Return what a model says as `[examples, classes]`, also of each place of a text."""
    scores = getattr(outputs, "logits", outputs)
    return scores.flatten(0, -2)


def flat_labels(labels: Tensor) -> Tensor:
    """Return labels as `[examples]`, or shares of classes as `[examples, classes]`."""
    return labels if labels.is_floating_point() else labels.flatten()


def count_right(scores: Tensor, labels: Tensor) -> Tensor:
    """Return how many of these have the highest score where the label is; where images were mixed, the larger one."""
    wanted = labels.argmax(1) if labels.is_floating_point() else labels
    return (scores.argmax(1) == wanted).sum()


def _loss(scores: Tensor, labels: Tensor, given: Optimizing) -> Tensor:
    if given.label_smoothing and given.smoothing_form == "dsb":
        num_classes = scores.shape[1]
        shares = labels if labels.is_floating_point() else F.one_hot(labels, num_classes).to(scores.dtype)
        rest = given.label_smoothing / num_classes
        # Of one class 1 - smoothing, of each other one smoothing / classes: a class's share is missing from the sum.
        return F.cross_entropy(scores, rest + (1 - given.label_smoothing - rest) * shares)
    return F.cross_entropy(scores, labels, label_smoothing=given.label_smoothing)
