import torch

from cutwork.sparsity.gradient import WholeGradient, all_finite


def test_a_matrix_gives_its_rows():
    matrix = torch.randn(5, 3)
    assert torch.equal(WholeGradient(matrix).rows(torch.tensor([4, 0])), matrix[[4, 0]])
    assert torch.equal(WholeGradient(matrix).rows(slice(1, 3)), matrix[1:3])


def test_a_sum_that_overflows_is_looked_at_more_closely():
    assert all_finite(torch.tensor([3e38, 3e38]))
    assert WholeGradient(torch.ones(2, 2)).is_finite()
    for bad in (torch.inf, -torch.inf, torch.nan):
        assert not all_finite(torch.tensor([1.0, bad]))
    assert not all_finite(torch.tensor([torch.inf, -torch.inf]))
