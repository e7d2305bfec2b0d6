"""Every member of Sparse-IFT on every kind of model, through its whole life: cost, gradients, copies, files, graphs."""

import copy

import pytest
import torch

import cutwork as cw
from cutwork.evaluation import in_evaluation

from .members import ALL, LINEAR
from .nets import BUILDERS, DENSITIES, DENSITY_OF_PAIRS, call, look_trained, make_inputs, make_net

# What cannot be, and why.
REFUSED = {
    **{
        (name, "wide_factorized"): r"sizes are whole numbers, and one more or less makes too much of so small a model"
        for name in ("flattened", "fused-attention", "mixer")
    },
    ("swin", "wide"): r"^features.1.0.attn.qkv is not called: other code reads its weight",
    ("swin", "wide_factorized"): r"^features.1.0.attn.qkv is not called: other code reads its weight",
}
TILES = "block:4"


def make_larger(name, member, **options):
    density = (DENSITY_OF_PAIRS if member == "wide_factorized" else DENSITIES).get(name, 0.25)
    return getattr(cw.transforms, member)(make_net(name), density, inputs=make_inputs(name), pattern=TILES, **options)


def make_sparse(larger, storage):
    """Return a copy of a larger model with its masks, if it is to have some."""
    net = copy.deepcopy(larger.model)
    if larger.densities:
        cw.sparsify(net, larger.patterns(TILES), density=larger.densities, storage=storage)
    return net.eval()


def check_kinds(net, model, member):
    """Only widening keeps the class of every module."""
    kinds, old = ([type(module) for module in each.modules()] for each in (net, model))
    assert (kinds == old) == (member == "wide")
    if member == "wide":
        assert sum(map(torch.numel, net.parameters())) > 1.5 * sum(map(torch.numel, model.parameters()))


def check_cost(larger, model, inputs):
    before = cw.flops(model, inputs).dense
    assert larger.flops_before == before
    assert larger.flops_after == pytest.approx(before, rel=1e-3)
    for storage in ("dense", "compressed"):
        assert cw.flops(make_sparse(larger, storage), inputs).sparse == pytest.approx(before, rel=1e-3)


def check_pass(net, model, inputs):
    out = call(net, inputs)
    with in_evaluation(model):
        assert out.shape == call(model, inputs).shape
    assert out.isfinite().all()
    out.square().mean().backward()
    assert [key for key, each in net.named_parameters() if each.grad is None or not each.grad.isfinite().all()] == []
    net.zero_grad()


def check_copy_and_file(net, larger, inputs, path):
    with torch.no_grad():
        expected = call(net, inputs)
        assert torch.equal(call(copy.deepcopy(net), inputs), expected)
        cw.save(net, path)
        again = copy.deepcopy(larger.model).eval()
        for parameter in again.parameters():
            parameter.zero_()
        cw.load(path, again)
        assert torch.equal(call(again, inputs), expected)


@pytest.mark.grid
@pytest.mark.parametrize("member", ALL)
@pytest.mark.parametrize("name", BUILDERS)
def test_any_member_of_any_model_costs_trains_and_travels(name, member, tmp_path):
    if message := REFUSED.get((name, member)):
        with pytest.raises(ValueError, match=message):
            make_larger(name, member)
        return
    larger, model, inputs = make_larger(name, member), make_net(name), make_inputs(name)
    check_kinds(larger.model, model, member)
    check_cost(larger, model, inputs)
    for storage in ("dense", "compressed"):
        net = make_sparse(larger, storage)
        check_pass(net, model, inputs)
        check_copy_and_file(net, larger, inputs, tmp_path / storage)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("member", LINEAR)
@pytest.mark.grid
def test_copies_of_any_model_compute_what_it_did(name, member):
    model, inputs = look_trained(make_net(name)).eval(), make_inputs(name)
    larger = getattr(cw.transforms, member)(model, 0.25, inputs=inputs, weights="copy")
    with in_evaluation(larger.model), in_evaluation(model):
        torch.testing.assert_close(call(larger.model, inputs), call(model, inputs), rtol=1e-3, atol=1e-3)


# Compilers take seconds, so each member has a few models, and these are of all kinds.
GRAPHS = [
    ("resnet-preactivation", "parallel", "compressed"),
    ("mixer-timm", "factorized", "dense"),
    ("gpt2", "doped", "compressed"),
    *(
        pytest.param(*cell, marks=pytest.mark.exhaustive)
        for cell in [
            ("bert", "wide_factorized", "dense"),
            ("vit", "wide", "compressed"),
            ("llama", "parallel", "dense"),
            ("mobilenet-v2", "factorized", "compressed"),
            ("convnext", "doped", "dense"),
            ("efficientnet", "wide_factorized", "dense"),
            ("resnet-basic", "wide", "dense"),
        ]
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "member", "storage"), GRAPHS)
def test_a_member_compiles_as_one_graph_and_exports(name, member, storage):
    inputs = make_inputs(name)
    net = make_sparse(make_larger(name, member), storage)
    expected = call(net, inputs)
    torch._dynamo.reset()
    found = call(torch.compile(net, fullgraph=True, backend="aot_eager"), inputs)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    if name in ("gpt2", "llama"):
        # A cache of keys and values is no output that a graph can have.
        inputs = {**inputs, "use_cache": False}
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})
    exported = torch.export.export(net, args, kwargs).module()
    torch.testing.assert_close(call(exported, inputs), expected)
