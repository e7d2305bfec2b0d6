import torch

import cutwork as cw
from cutwork.sparsity.layout import Layout
from cutwork.sparsity.reprojected import Reprojected


def test_the_whole_gradient_goes_through_and_decay_joins_it_outside_the_mask():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(8, 6))
    mask = cw.parse("unstructured").project(weight.detach().abs(), 0.5)
    sparsity = Reprojected(mask, Layout((8, 6)), pattern=cw.parse("unstructured"), density=0.5, decay=0.5)
    effective = sparsity(weight)
    assert torch.equal(effective, weight * mask)
    effective.sum().backward()
    assert torch.equal(weight.grad, torch.ones(8, 6))
    assert sparsity.before_update(weight, 8.0, 0.1) is None
    torch.testing.assert_close(weight.grad, 1 + 8 * 0.5 * weight.detach() * ~mask)
    assert sparsity.fits(weight)
