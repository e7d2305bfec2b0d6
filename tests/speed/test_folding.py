import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.evaluation import in_evaluation
from cutwork.layers.composite import Composite
from cutwork.layers.swap import sparse_layers
from cutwork.transforms import doped, factorized, parallel, wide_factorized


def make_cnn(**options):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.Conv2d(16, 32, 3, **options),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=4),
        nn.Flatten(),
        nn.LazyLinear(10),
    )


def make_sparse(member, pattern="block:4", storage="dense", model=None, density=0.25, **options):
    """Return a sparse member in evaluation that has seen some images, and images for it."""
    torch.manual_seed(0)
    x = torch.rand(4, 3, 8, 8)
    model = make_cnn(stride=2, padding=1) if model is None else model
    model(x)
    larger = member(model, density, inputs=x, **options)
    if larger.densities:
        amount = {} if pattern == "2:4" else {"density": larger.densities}
        cw.sparsify(larger.model, larger.patterns(pattern), **amount, storage=storage)
    norms = [module for module in larger.model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 2)
            norm.bias.uniform_(-1, 1)
    for _ in range(3):
        larger.model(torch.rand(4, 3, 8, 8))
    return larger.model.eval(), x


FOLDABLE = {
    "parallel": (parallel, {}),
    "parallel-norm": (parallel, {"after": "norm"}),
    "factorized": (factorized, {}),
    "factorized-norm": (factorized, {"between": "norm"}),
    "doped": (doped, {}),
}


@pytest.mark.parametrize("storage", ["dense", "compressed"])
@pytest.mark.parametrize("name", FOLDABLE)
def test_one_layer_computes_the_same(name, storage):
    member, options = FOLDABLE[name]
    model, x = make_sparse(member, storage=storage, **options)
    with torch.no_grad():
        expected = model(x)
        foldings = cw.fold(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert not any(each.reason for each in foldings)
    assert not any(isinstance(module, Composite) for module in model.modules())
    if name.startswith("parallel"):
        assert model[1].sparsity.pattern == cw.parse("block:4")
        assert foldings[0].kept_after == int(model[1].sparsity.mask.sum()) <= foldings[0].kept_before
    else:
        assert type(model[1]) is nn.Conv2d


@pytest.mark.parametrize("name", FOLDABLE)
def test_folding_packing_and_fusing_follow_each_other(name):
    member, options = FOLDABLE[name]
    model, x = make_sparse(member, **options)
    with torch.no_grad():
        expected = model(x)
        cw.fold(model)
        if sparse_layers(model):
            cw.pack(model, x, forms={"*": "!int8"}, cache=False, seconds=0.01)
        cw.fuse(model, x)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert type(model[2]) is nn.Identity


def test_a_union_that_is_no_legal_mask_is_unstructured():
    model, x = make_sparse(parallel, pattern="2:4", density=0.5, weights="fresh", layers="1")
    with torch.no_grad():
        expected = model(x)
        cw.fold(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert model[1].sparsity.pattern == cw.parse("unstructured")


def test_what_is_not_linear_stays_and_says_so():
    model, x = make_sparse(parallel, after="norm+relu")
    expected = model(x)
    foldings = cw.fold(model)
    assert [str(each) for each in foldings] == [
        f"{name} (Parallel) stays: ReLU is no linear function" for name in ("1", "4")
    ]
    assert torch.equal(model(x), expected)


def test_factors_cheaper_than_their_product_stay():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(20, 512), nn.Linear(512, 512), nn.Linear(512, 10)), torch.rand(2, 20)
    larger = wide_factorized(model, 0.1, inputs=x).model.eval()
    (folding,) = cw.fold(larger)
    assert folding.reason == "one layer would have 2,663,424 weights, it has 228,480"


def test_it_needs_composites_and_evaluation():
    with pytest.raises(ValueError, match="no branches or factors to fold"):
        cw.fold(nn.Sequential(nn.Linear(4, 4)).eval())
    model, _ = make_sparse(parallel)
    with pytest.raises(ValueError, match=r"1 is in training, .*; call model.eval\(\) first"):
        cw.fold(model.train())


@pytest.mark.parametrize("is_sparse", [False, True])
def test_fuse_takes_batch_norms_behind_layers_that_are_not_compressed(is_sparse):
    torch.manual_seed(0)
    x = torch.rand(2, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    if is_sparse:
        cw.sparsify(model, {"0": "unstructured"}, density=0.5)
    model(x)
    with in_evaluation(model):
        expected = model(x)
    (fusion,) = cw.fuse(model.eval(), x)
    assert str(fusion) == "1 (BatchNorm2d) is done by 0, in its weight"
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)


def test_fuse_leaves_a_weight_that_others_share():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)).eval()
    model[2].weight = model[0].weight
    assert cw.fuse(model, torch.rand(1, 3, 4, 4)) == ()
