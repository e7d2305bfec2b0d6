import pytest
import torch

from cutwork.training.exploration import Exploration


def masks(*rows):
    return [torch.tensor(row, dtype=torch.bool) for row in rows]


def test_rates_over_three_masks():
    first, second, third = masks([1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 0, 1, 0])
    seen = Exploration.begin(first)
    assert (seen.itop_rate, seen.turnover, seen.overlap) == (pytest.approx(0.4), 0.0, 1.0)
    seen.visit(second)
    seen.visit(third)
    assert seen.itop_rate == pytest.approx(0.8)
    assert seen.always_rate == pytest.approx(0.2)
    assert seen.overlap == 0.5
    assert seen.turnover == 0.5


def test_a_mask_that_only_grows_turns_nothing_over():
    empty, full = masks([0, 0], [1, 1])
    seen = Exploration.begin(empty)
    seen.visit(full)
    assert seen.turnovers == [0.0]
    assert seen.overlap == 0.0


def test_its_state_comes_back():
    first, second = masks([1, 0], [0, 1])
    seen = Exploration.begin(first)
    seen.visit(second)
    again = Exploration.from_state_dict(seen.state_dict(), torch.device("cpu"))
    assert again.turnovers == seen.turnovers
    assert torch.equal(again.ever, seen.ever)
    again.visit(first)
    assert len(seen.turnovers) == 1
