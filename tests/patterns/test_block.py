import pytest
import torch

from cutwork.patterns import Block, parse


def test_an_edge_tile_is_scored_by_what_it_has_inside():
    scores = torch.zeros(5, 5)
    scores[4, 4] = 1.0
    scores[:4, :4] = 0.9
    assert Block(4, 4).project(scores, 0.25).nonzero().tolist() == [[4, 4]]


def test_a_tile_larger_than_the_matrix_is_the_matrix():
    assert Block(32, 32).project(torch.randn(10, 7), 0.1).all()


def test_vectors_are_tall_tiles():
    assert parse("vector:16") == Block(16, 1)
    assert str(Block(16, 1)) == "vector:16"


def test_a_mask_that_cuts_a_tile_is_not_legal():
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4, :4] = True
    assert Block(4, 4).allows(mask)
    mask[0, 0] = False
    assert not Block(4, 4).allows(mask)


@pytest.mark.parametrize("size", [(0, 4), (4, 0)])
def test_an_empty_block_is_refused(size):
    with pytest.raises(ValueError, match="at least one row"):
        Block(*size)
    with pytest.raises(ValueError, match="at least one row"):
        parse("shuffled:{}x{}".format(*size))
