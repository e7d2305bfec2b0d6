import pytest
import torch

from cutwork.methods.scores import gradient, magnitude, taylor
from cutwork.patterns import parse
from cutwork.sparsity import numbers
from cutwork.sparsity.compressed import index_of
from cutwork.sparsity.gradient import GradientOfKept, WholeGradient
from cutwork.sparsity.numbers import KeptNumbers, WholeNumbers

PATTERNS = ["block:4", "block:5x3", "vector:4", "shuffled:4"]


class Given(GradientOfKept):
    """A gradient that is wrong at what is kept, in its rows."""

    has_exact_rows = False

    def __init__(self, matrix, mask):
        self.matrix, self.mask = matrix, mask

    def is_finite(self):
        return True

    def rows(self, outputs, into=None):
        return torch.where(self.mask, 99, self.matrix)[outputs]

    def kept(self, index):
        return index.gather(self.matrix)


def both(text):
    torch.manual_seed(0)
    pattern, weight, grad = parse(text), torch.randn(23, 17), torch.randn(23, 17)
    mask = pattern.project(weight.abs(), 0.4)
    weight, index = weight * mask, index_of(mask, pattern)
    whole = WholeNumbers(pattern, weight, mask, WholeGradient(grad))
    return whole, KeptNumbers(pattern, index, index.gather(weight), Given(grad, mask))


@pytest.mark.parametrize("at_once", [(1, 1), (400, 100), (2**20, 2**16)])
@pytest.mark.parametrize("score", [magnitude, gradient, taylor])
@pytest.mark.parametrize("text", PATTERNS)
def test_tiles_are_scored_alike_however_much_of_the_weight_is_there(text, score, at_once, monkeypatch):
    for name, value in zip(("NUMBERS_AT_ONCE", "SCORES_AT_ONCE"), at_once, strict=True):
        monkeypatch.setattr(numbers, name, value)
    whole, kept = both(text)
    tiles = whole.tiles
    scores = score(whole.weight, whole.whole_gradient)
    everything = tiles.keeping(torch.ones(tiles.grid, dtype=torch.bool))
    expected = everything.means(everything.gather(scores)).view(tiles.grid)
    how = {"by_gradient": score is not magnitude, "of_zeros": score is gradient}
    torch.testing.assert_close(whole.pool(score, **how), expected)
    torch.testing.assert_close(kept.pool(score, **how), expected)


@pytest.mark.parametrize("text", PATTERNS)
def test_matrices_are_there_for_who_reads_them(text):
    whole, kept = both(text)
    assert torch.equal(kept.weight, whole.weight)
    assert torch.equal(kept.mask, whole.mask)
    assert torch.equal(kept.whole_gradient, whole.whole_gradient)


@pytest.mark.parametrize("text", PATTERNS)
def test_a_layer_can_be_seen_under_another_mask(text):
    whole, kept = both(text)
    fewer = kept.tiles.kept & (torch.rand(kept.tiles.grid) < 0.5)
    for seen in (whole.under(whole.keeping(fewer)), kept.under(kept.keeping(fewer)), kept.under(whole.keeping(fewer))):
        assert torch.equal(seen.mask, whole.keeping(fewer))
        assert torch.equal(seen.weight, whole.weight)
        assert torch.equal(seen.whole_gradient, whole.whole_gradient)


def test_a_mask_that_is_not_held_by_tiles_has_none():
    weight = torch.randn(4, 4)
    assert WholeNumbers(parse("unstructured"), weight, weight > 0).tiles is None
    assert WholeNumbers(parse("unstructured"), weight, weight > 0).whole_gradient is None


@pytest.mark.parametrize("at_once", [(1, 1), (2**20, 2**16)])
@pytest.mark.parametrize("score", [magnitude, gradient, taylor])
@pytest.mark.parametrize("text", PATTERNS)
def test_weights_are_scored_alike_however_much_of_the_weight_is_there(text, score, at_once, monkeypatch):
    for name, value in zip(("NUMBERS_AT_ONCE", "SCORES_AT_ONCE"), at_once, strict=True):
        monkeypatch.setattr(numbers, name, value)
    whole, kept = both(text)
    scores = score(whole.weight, whole.whole_gradient)
    fewer = kept.tiles.kept & (torch.rand(kept.tiles.grid) < 0.5)
    for seen in (whole, kept, whole.under(whole.keeping(fewer)), kept.under(kept.keeping(fewer))):
        found = seen.score_kept(score, by_gradient=score is not magnitude)
        assert torch.equal(found, seen.tiles.gather(scores))
    for seen in (whole, kept):
        found = seen.score_all(score, by_gradient=score is not magnitude, of_zeros=score is gradient)
        # Where it is stored the gradient is formed in another way; here another number stands for that.
        expected = scores if seen is whole or score is not gradient else scores.masked_fill(whole.mask, 99)
        assert torch.equal(found, expected)
