import pytest
import torch

from cutwork.sparsity.matrix import from_matrix, matrix_shape, to_matrix


@pytest.mark.parametrize(("shape", "transposed"), [((6, 4), False), ((6, 4), True), ((8, 4, 3, 5), False)])
def test_the_matrix_form_is_undone(shape, transposed):
    weight = torch.rand(shape)
    matrix = to_matrix(weight, transposed=transposed)
    assert tuple(matrix.shape) == matrix_shape(shape, transposed=transposed)
    back = from_matrix(matrix, shape, transposed=transposed)
    assert torch.equal(back, weight)
    assert back.is_contiguous()


def test_neighbouring_columns_of_a_convolution_are_neighbouring_channels():
    weight = torch.arange(2 * 4 * 3 * 3).view(2, 4, 3, 3)
    assert torch.equal(to_matrix(weight)[0, :4], weight[0, :, 0, 0])
    assert torch.equal(to_matrix(weight)[1, -4:], weight[1, :, 2, 2])
