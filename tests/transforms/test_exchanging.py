import copy

import pytest
import torch
from torch import nn

import cutwork as cw

from . import members

# Models of all kinds have a life of their own in another file; here options meet each kind of layer.
MODELS = ("mlp", "cnn", "mixer", "vit", "gpt2")


@pytest.mark.grid
@pytest.mark.parametrize("member", members.MEMBERS)
@pytest.mark.parametrize("name", MODELS)
def test_a_member_returns_and_costs_what_the_model_does(name, member):
    torch.manual_seed(0)
    model, x = members.make_model(name)
    before = copy.deepcopy(model.state_dict())
    larger = members.MEMBERS[member](model, 0.25, inputs=(x,))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert larger.flops_after == pytest.approx(larger.flops_before, rel=1e-3)
    assert larger.flops_before == cw.flops(model, x).dense
    assert {each.layer for each in larger.changes} >= {*larger.densities}
    cw.sparsify(larger.model, larger.patterns("unstructured"), density=larger.densities)
    assert cw.flops(larger.model, x).sparse == pytest.approx(larger.flops_before, rel=1.5e-3)
    y = members.first_of(larger.model(x))
    assert y.shape == members.first_of(model(x)).shape
    y.square().mean().backward()
    assert y.isfinite().all()
    unread = [
        key for key, each in larger.model.named_parameters() if each.grad is None or not each.grad.isfinite().all()
    ]
    assert not [key for key in unread if "pooler" not in key]


@pytest.mark.parametrize("after", ["linear", "relu"])
@pytest.mark.parametrize("member", ["parallel", "factorized", "doped"])
def test_fresh_outputs_vary_as_they_did(member, after):
    torch.manual_seed(0)
    model, x = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(3))), torch.randn(512, 256)
    options = {"parallel": {"after": after}, "factorized": {"between": after}, "doped": {}}[member]
    larger = getattr(cw.transforms, member)(model, 0.25, inputs=x, **options)
    size, expected = (part(x).detach().square().mean() for part in (larger.model[1], model[1]))
    assert float(size / expected) == pytest.approx(1, rel=0.15)


@pytest.mark.parametrize("member", members.LINEAR)
@pytest.mark.parametrize(
    "geometry",
    [
        {"stride": 2, "padding": 1},
        {"padding": "same", "padding_mode": "reflect"},
        {"dilation": 2, "bias": False},
        {"stride": (1, 2), "padding": (0, 2)},
    ],
)
def test_convolutions_keep_their_geometry(geometry, member):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(8, 12, 3, **geometry)), torch.rand(2, 8, 9, 9)
    larger = members.MEMBERS[member](model, 0.25, inputs=x, layers="*", weights="copy")
    torch.testing.assert_close(larger.model(x), model(x), rtol=1e-4, atol=1e-5)


def test_groups_have_branches_but_no_factors():
    model, x = nn.Sequential(nn.Conv2d(8, 16, 3, groups=2)), torch.rand(2, 8, 9, 9)
    larger = cw.transforms.parallel(model, 0.25, inputs=x, layers="*", weights="copy")
    torch.testing.assert_close(larger.model(x), model(x), rtol=1e-4, atol=1e-5)
    for member in (cw.transforms.factorized, cw.transforms.doped):
        with pytest.raises(ValueError, match="0: its 2 groups share no inputs"):
            member(model, 0.25, inputs=x, layers="*")


@pytest.mark.parametrize("member", members.LINEAR)
def test_the_same_seed_makes_the_same_model(member):
    torch.manual_seed(0)
    model, x = members.make_model("mlp")
    one, same, other = (members.MEMBERS[member](model, 0.25, inputs=x, seed=seed).model for seed in (0, 0, 1))
    pairs = list(zip(one.parameters(), same.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)


@pytest.mark.parametrize("storage", ["dense", "compressed"])
@pytest.mark.parametrize("member", members.MEMBERS)
def test_copies_files_and_exports_of_sparse_members_compute_the_same(member, storage, tmp_path):
    torch.manual_seed(0)
    model, x = members.make_model("cnn")

    def make():
        larger = members.MEMBERS[member](model, 0.25, inputs=x)
        options = {"density": larger.densities, "steps": 10, "storage": storage}
        return larger, cw.sparsify(larger.model, larger.patterns("block:4"), **options)

    larger, sparsifier = make()
    sparse = larger.model.eval()
    expected = sparse(x)
    assert torch.equal(copy.deepcopy(sparse)(x), expected)
    cw.save(sparse, tmp_path / "model.cw", sparsifier=sparsifier)
    other = make()[0].model.eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    cw.load(tmp_path / "model.cw", other)
    assert torch.equal(other(x), expected)
    torch.testing.assert_close(torch.export.export(sparse, (x,)).module()(x), expected)


@pytest.mark.parametrize("member", ["parallel-norm-relu", "factorized-norm-relu", "doped"])
@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_members_compile_as_one_graph(storage, member):
    torch.manual_seed(0)
    model, x = members.make_model("mlp")
    larger = members.MEMBERS[member](model, 0.25, inputs=x)
    cw.sparsify(larger.model, larger.patterns("block:4"), density=larger.densities, storage=storage)
    compiled = torch.compile(larger.model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), larger.model(x))
    compiled(x).sum().backward()


@pytest.mark.parametrize("member", members.MEMBERS)
def test_both_storages_train_alike(member):
    losses = []
    for storage in ("dense", "compressed"):
        torch.manual_seed(0)
        model, x = members.make_model("cnn")
        larger = members.MEMBERS[member](model.double(), 0.25, inputs=x.double())
        sparsifier = cw.sparsify(
            larger.model,
            larger.patterns("block:4"),
            density=larger.densities,
            method=cw.RigL(every=2),
            steps=8,
            storage=storage,
        )
        optimizer = torch.optim.SGD(larger.model.parameters(), lr=0.1, momentum=0.9)
        sparsifier.attach(optimizer)
        losses.append([])
        for _ in range(8):
            optimizer.zero_grad()
            loss = (larger.model(x.double()) - 1).square().mean()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize(("member", "count"), [("parallel-relu", 4), ("factorized-norm-relu", 1)])
def test_what_stands_inside_is_fused_with_compressed_layers(member, count):
    torch.manual_seed(0)
    model, x = members.make_model("cnn")
    larger = members.MEMBERS[member](model, 0.25, inputs=x).model.eval()
    cw.sparsify(larger, {"3.*": "block:4"}, density=0.5, storage="compressed")
    with torch.no_grad():
        expected = larger(x)
        fusions = cw.fuse(larger, x)
        torch.testing.assert_close(larger(x), expected, rtol=1e-4, atol=1e-5)
    assert sum(fusion.kind == "ReLU" and fusion.module.startswith("3.") for fusion in fusions) == count


def test_a_transformer_layer_calls_what_stands_in_it():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True).eval()
    x = torch.rand(2, 5, 32)
    larger = cw.transforms.parallel(model, 0.5, inputs=x, layers="linear*", weights="copy")
    assert sorted(larger.densities) == [f"linear{at}.branches.{branch}" for at in (1, 2) for branch in (0, 1)]
    with torch.no_grad():
        torch.testing.assert_close(larger.model(x), model(x))


def test_a_layer_in_two_places_is_exchanged_in_both():
    layer = nn.Linear(16, 16)
    model, x = nn.Sequential(nn.Linear(8, 16), layer, nn.ReLU(), layer, nn.Linear(16, 4)), torch.rand(2, 8)
    larger = cw.transforms.parallel(model, 0.5, inputs=x, weights="copy")
    assert larger.model[1] is larger.model[3]
    assert larger.densities == {"1.branches.0": 0.5, "1.branches.1": 0.5}
    torch.testing.assert_close(larger.model(x), model(x))


def test_precision_modes_and_frozen_weights_carry_over():
    model, x = members.make_mlp().bfloat16().eval(), torch.rand(2, 20).bfloat16()
    model[2].weight.requires_grad_(False)
    larger = cw.transforms.factorized(model, 0.25, inputs=x, between="norm")
    assert {each.dtype for each in larger.model.parameters()} == {torch.bfloat16}
    assert not any(module.training for module in larger.model.modules())
    assert not any(each.weight.requires_grad for each in (larger.model[2].first, larger.model[2].second))


@pytest.mark.parametrize("member", members.LINEAR)
def test_bad_options_are_refused(member):
    model, x = members.make_model("mlp")
    make = members.MEMBERS[member]
    with pytest.raises(ValueError, match="density=1 keeps everything"):
        make(model, 1.0, inputs=x)
    with pytest.raises(ValueError, match="unknown weights 'copied'; write 'fresh' or 'copy'"):
        make(model, 0.25, inputs=x, weights="copied")
    with pytest.raises(ValueError, match="unknown counting 'macs'"):
        make(model, 0.25, inputs=x, counting="macs")


def test_code_that_reads_a_weight_is_found():
    class Nosy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))

        def forward(self, x):
            return self.layers(x).to(self.layers[1].weight.dtype)

    with pytest.raises(
        ValueError, match=r"the model itself does not run in the larger model: AttributeError.*'weight'"
    ):
        cw.transforms.parallel(Nosy(), 0.25, inputs=torch.rand(2, 8))
