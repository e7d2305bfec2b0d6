import pytest
import torch

from cutwork.sparsity.layout import Layout


@pytest.mark.parametrize("layout", [Layout((6, 4)), Layout((6, 4), transposed=True), Layout((8, 4, 3, 5))], ids=str)
def test_the_matrix_form_is_undone(layout):
    weight = torch.rand(layout.shape)
    matrix = layout.to_matrix(weight)
    assert tuple(matrix.shape) == layout.matrix_shape
    back = layout.from_matrix(matrix)
    assert torch.equal(back, weight)
    assert back.is_contiguous()


def test_neighbouring_columns_of_a_convolution_are_neighbouring_channels():
    weight = torch.arange(2 * 4 * 3 * 3).view(2, 4, 3, 3)
    matrix = Layout.of(weight).to_matrix(weight)
    assert torch.equal(matrix[0, :4], weight[0, :, 0, 0])
    assert torch.equal(matrix[1, -4:], weight[1, :, 2, 2])


def test_a_transposed_weight_has_its_outputs_last():
    assert Layout((6, 4), transposed=True).channels == Layout((4, 6, 3, 3)).channels == (4, 6)
