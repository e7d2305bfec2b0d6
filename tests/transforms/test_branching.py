import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.transforms import parallel

from . import members


@pytest.mark.parametrize("pattern", ["unstructured", "block:16"])
def test_a_trained_model_goes_on_sparse_from_its_function(pattern):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 128), nn.Linear(128, 128), nn.Linear(128, 4)), torch.rand(8, 32)
    larger = parallel(model, 0.25, inputs=x, weights="copy")
    cw.sparsify(larger.model, larger.patterns(pattern), density=larger.densities)
    torch.testing.assert_close(larger.model(x), model(x))
    masks = torch.stack([branch.sparsity.mask for branch in larger.model[1].branches])
    assert (masks.sum(0) == 1).all()
    assert (masks.sum(1) == 32).all()
    assert (masks.sum(2) == 32).all()


def test_norms_and_activations_follow_each_branch():
    model, x = members.make_model("cnn")
    branches = parallel(model, 0.5, inputs=x, after="norm+relu").model[3].branches
    assert [[type(part) for part in branch] for branch in branches] == [[nn.Conv2d, nn.BatchNorm2d, nn.ReLU]] * 2
    model, x = members.make_model("mlp")
    branches = parallel(model, 0.5, inputs=x, after="norm").model[2].branches
    assert [[type(part) for part in branch] for branch in branches] == [[nn.Linear, nn.LayerNorm]] * 2
    assert branches[0][0].bias is None


def test_what_cannot_be_is_refused():
    model, x = members.make_model("mlp")
    with pytest.raises(ValueError, match=r"density=0.7 gives one branch"):
        parallel(model, 0.7, inputs=x)
    with pytest.raises(ValueError, match=r"unknown after='rely' \(did you mean 'relu'\?\); write 'linear', 'norm'"):
        parallel(model, 0.5, inputs=x, after="rely")
    with pytest.raises(ValueError, match="weights='copy' computes the same only with after='linear'"):
        parallel(model, 0.5, inputs=x, after="norm", weights="copy")
