import pytest
import torch

from cutwork.methods.scores import NEED_NO_GRADIENT, SCORES, gradient, magnitude, random, taylor

WEIGHT, GRAD = torch.tensor([[1.0, -2.0]]), torch.tensor([[-3.0, 0.5]])


def test_scores_are_what_their_names_say():
    assert magnitude(WEIGHT).tolist() == [[1, 2]]
    assert gradient(WEIGHT, GRAD).tolist() == [[3, 0.5]]
    assert taylor(WEIGHT, GRAD).tolist() == [[3, 1]]


def test_chance_repeats_for_the_same_generator():
    first, again = (random(WEIGHT, None, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("score", [score for score in SCORES.values() if score not in NEED_NO_GRADIENT])
def test_a_score_that_needs_a_gradient_says_so(score):
    with pytest.raises(ValueError, match="needs a gradient"):
        score(WEIGHT, None, None)
