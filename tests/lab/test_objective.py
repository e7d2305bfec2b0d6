"""Smoothed labels, both as PyTorch and as the program of shuffled blocks have them, and a teacher's answers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cutwork.lab.objective import Objective, count_right
from cutwork.lab.training import Optimizing

SCORES, LABELS = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
SHARES = F.one_hot(LABELS, 5).float()


@pytest.mark.parametrize("labels", [LABELS, SHARES])
def test_plain_labels_are_cross_entropy(labels):
    assert torch.allclose(Objective(Optimizing())(SCORES, labels, SCORES), F.cross_entropy(SCORES, LABELS))


@pytest.mark.parametrize("labels", [LABELS, SHARES])
def test_smoothed_labels_as_pytorch_has_them_sum_to_one(labels):
    expected = F.cross_entropy(SCORES, LABELS, label_smoothing=0.1)
    assert torch.allclose(Objective(Optimizing(label_smoothing=0.1))(SCORES, labels, SCORES), expected)


@pytest.mark.parametrize("labels", [LABELS, SHARES])
def test_smoothed_labels_as_shuffled_blocks_have_them_sum_to_less(labels):
    shares = torch.full((6, 5), 0.1 / 5)
    shares[torch.arange(6), LABELS] = 0.9
    expected = -(shares * SCORES.log_softmax(1)).sum(1).mean()
    given = Optimizing(label_smoothing=0.1, smoothing_form="dsb")
    assert torch.allclose(Objective(given)(SCORES, labels, SCORES), expected)


def test_a_student_that_answers_as_its_teacher_has_only_its_own_part_left():
    given = Optimizing(teacher="run", teacher_weight=0.25)
    found = Objective(given, nn.Identity())(SCORES, LABELS, SCORES)
    assert torch.allclose(found, 0.75 * F.cross_entropy(SCORES, LABELS))


def test_of_mixed_images_the_larger_share_is_right():
    assert count_right(SHARES, 0.6 * SHARES + 0.4 * SHARES.roll(1, 0)) == 6
