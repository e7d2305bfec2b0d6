import copy

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.transforms import wide

from .nets import BUILDERS, DENSITIES, call, look_trained, make_inputs, make_net

# A channel shuffle spreads neighbours, tokens embed by the weight that predicts them.
NOT_COPIED = ("shufflenet", "gpt2", "swin")
# Slower, and made of what others are made of too.
LARGE = ("resnet-bottleneck", "resnext", "mobilenet-v3", "swin-timm", "cait")


def some(names):
    return [pytest.param(name, marks=[pytest.mark.exhaustive] * (name in LARGE)) for name in names]


def make_mlp():
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def make_wide(name, **options):
    model, inputs = make_net(name), make_inputs(name)
    return model, inputs, wide(model, DENSITIES.get(name, 0.25), inputs=inputs, **options)


@pytest.mark.parametrize("name", some(name for name in BUILDERS if name not in NOT_COPIED))
def test_copied_weights_compute_what_they_did(name):
    model, inputs = look_trained(make_net(name)).eval(), make_inputs(name)
    larger = wide(model, DENSITIES.get(name, 0.25), inputs=inputs, weights="copy")
    torch.testing.assert_close(call(larger.model.eval(), inputs), call(model, inputs), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["resnet-preactivation", "mobilenet-v2"])
def test_with_batch_norm_copies_compute_the_same_at_any_density(name):
    model, inputs = look_trained(make_net(name)).eval(), make_inputs(name)
    larger = wide(model, 0.6, inputs=inputs, weights="copy", multiple=1)
    torch.testing.assert_close(call(larger.model.eval(), inputs), call(model, inputs), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet-preactivation", pytest.param("llama", marks=pytest.mark.exhaustive)])
def test_wider_models_compile_and_export(name):
    _, inputs, larger = make_wide(name)
    net = larger.model.eval()
    expected = call(net, inputs)
    with torch.no_grad():
        compiled = call(torch.compile(net, fullgraph=True), inputs)
    torch.testing.assert_close(compiled, expected, rtol=1e-3, atol=1e-3)
    args, kwargs = ((), {**inputs, "use_cache": False}) if isinstance(inputs, dict) else ((inputs,), {})
    exported = torch.export.export(net, args, kwargs).module()
    torch.testing.assert_close(call(exported, kwargs or inputs), expected, rtol=1e-3, atol=1e-3)


def test_both_storages_train_alike():
    losses = []
    for storage in ("dense", "compressed"):
        _, inputs, larger = make_wide("resnet-preactivation")
        sparsifier = cw.sparsify(
            larger.model,
            larger.patterns("block:8"),
            density=larger.densities,
            method=cw.RigL(every=2),
            steps=8,
            storage=storage,
        )
        optimizer = torch.optim.SGD(cw.param_groups(larger.model, lr=1e-2), momentum=0.9)
        sparsifier.attach(optimizer)
        losses.append([])
        for _ in range(6):
            optimizer.zero_grad()
            loss = call(larger.model, inputs).square().mean()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][-1] < losses[0][0]


def test_they_are_saved_and_loaded_like_any(tmp_path):
    _, inputs, larger = make_wide("resnet-preactivation")
    cw.sparsify(larger.model, larger.patterns("block:8"), density=larger.densities, storage="compressed")
    cw.save(larger.model, tmp_path / "wide.safetensors")
    again = make_wide("resnet-preactivation", seed=1)[2].model
    cw.load(tmp_path / "wide.safetensors", again)
    torch.testing.assert_close(call(again.eval(), inputs), call(larger.model.eval(), inputs))


def test_the_model_itself_stays_as_it_is():
    model = make_mlp()
    before = copy.deepcopy(model.state_dict())
    larger = wide(model, 0.25, inputs=torch.rand(1, 20))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not {id(each) for each in model.parameters()} & {id(each) for each in larger.model.parameters()}
    assert (model[2].in_features, larger.model[2].in_features) == (64, 128)


def test_the_same_seed_gives_the_same_weights():
    one, same, other = (
        wide(make_net("resnet-preactivation"), 0.25, inputs=make_inputs("resnet-preactivation"), seed=seed)
        for seed in (0, 0, 1)
    )
    weights = [each.model.blocks[0].conv1.weight for each in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_heads_become_more_and_not_larger():
    _, _, larger = make_wide("fused-attention")
    assert (larger.model.attention.num_heads, larger.model.attention.qkv.out_features) == (8, 3 * 128)
    _, _, larger = make_wide("vit")
    attention = larger.model.encoder.layers.encoder_layer_0.self_attention
    assert (attention.num_heads, attention.embed_dim, attention.head_dim) == (8, 128, 16)


def test_the_first_and_the_last_layer_stay_dense_and_keep_their_outer_sizes():
    _, _, larger = make_wide("resnet-basic")
    dense = {change.layer: change for change in larger.changes if change.density is None}
    assert list(dense) == ["conv1", "fc"]
    assert dense["conv1"].new_shape == (128, 3, 7, 7)
    assert dense["fc"].new_shape == (10, 256)


def test_depthwise_convolutions_grow_and_stay_dense():
    _, _, larger = make_wide("convnext")
    depthwise = larger.model.features[1][0].block[0]
    assert (depthwise.groups, depthwise.in_channels, tuple(depthwise.weight.shape)) == (64, 64, (64, 1, 7, 7))
    assert "features.1.0.block.0" not in larger.densities


def test_widths_are_multiples_that_change_them_little():
    larger = wide(make_net("resnet-basic"), 0.5, inputs=make_inputs("resnet-basic"))
    assert larger.model.layer1[0].conv1.out_channels == 96
    larger = wide(make_net("resnet-basic"), 0.5, inputs=make_inputs("resnet-basic"), multiple=1)
    assert larger.model.layer1[0].conv1.out_channels == 91


def test_first_weights_vary_as_outputs_need_it():
    model, inputs = make_net("resnet-basic"), make_inputs("resnet-basic")
    larger = wide(model, 0.25, inputs=inputs)
    before, after = model.layer2[0].conv2.weight, larger.model.layer2[0].conv2.weight
    assert after.std().item() == pytest.approx(before.std().item() / 2**0.5, rel=0.01)
    assert torch.equal(larger.model.layer2[0].bn2.weight, torch.ones(256))


def test_first_weights_and_learning_rates_fit_the_density_by_themselves():
    _, _, larger = make_wide("resnet-preactivation")
    whole = larger.model.blocks[0].conv2.weight.norm()
    sparsifier = cw.sparsify(larger.model, larger.patterns("block:8"), density=larger.densities)
    layer = sparsifier.layers["blocks.0.conv2"]
    torch.testing.assert_close(layer.weight.norm(), whole)
    rates = {group["lr"] for group in cw.param_groups(larger.model, lr=0.1)}
    assert min(rates) == 0.1
    assert max(rates) == pytest.approx(0.1 / min(larger.densities.values()), rel=0.1)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.outer(self.inner(x) + torch.ones(8))


class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        x = self.first(x)
        return self.last(x if x.sum() > 0 else -x)


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, x):
        return self.last(nn.functional.linear(self.first(x), self.middle.weight))


class Indexed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 8)
        self.register_buffer("order", torch.arange(16).flip(0))

    def forward(self, x):
        return self.last(self.middle(self.first(x)[:, self.order]))


X = torch.rand(2, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Tied, "nothing can grow: every width, also of inner.weight, is tied to a number"),
        (Deciding, "the model itself: the model cannot run without numbers"),
        (Bare, "middle is not called: other code reads its weight"),
        (Indexed, r"order holds torch.int64 and would have to grow from \(16,\) to \(32,\)"),
    ],
)
def test_what_cannot_be_widened_is_refused_by_name(make, message):
    model = make()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        wide(model, 0.25, inputs=X)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_shuffled_channels_cannot_be_copied():
    with pytest.raises(ValueError, match="channels must not be shuffled"):
        make_wide("shufflenet", weights="copy")


def test_a_weight_that_serves_two_ends_cannot_be_copied():
    with pytest.raises(ValueError, match=r"lm_head.weight is transformer.wte.weight too"):
        make_wide("gpt2", weights="copy")


def test_layer_norm_needs_a_whole_factor_to_copy():
    with pytest.raises(ValueError, match=r"copies of the weights do not compute the same here"):
        wide(look_trained(make_net("mixer")), 0.6, inputs=make_inputs("mixer"), weights="copy", multiple=1)


class Standardised(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight / self.weight.norm(), self.bias)


def test_layers_that_cannot_be_sparse_are_named_where_they_cost_too_much():
    model = nn.Sequential(nn.Linear(8, 32), Standardised(32, 32), nn.Linear(32, 32), nn.Linear(32, 8))
    with pytest.raises(
        ValueError,
        match=r"operations, of which 1 36,864, all of the dense one .*; 1 stays dense because .* has a 'forward'",
    ):
        wide(model, 0.1, inputs=X)


def test_with_a_pattern_densities_are_whole_units():
    model, inputs = make_net("resnet-preactivation"), make_inputs("resnet-preactivation")
    larger = wide(model, 0.25, inputs=inputs, pattern="block:8")
    sparsifier = cw.sparsify(larger.model, larger.patterns("block:8"), density=larger.densities, storage="compressed")
    assert cw.flops(larger.model, inputs).sparse == pytest.approx(larger.flops_before, rel=1e-3)
    kept = {name: layer.describe_weight().density for name, layer in sparsifier.layers.items()}
    assert kept == pytest.approx(larger.densities)


def test_what_does_not_fit_the_budget_is_refused():
    with pytest.raises(ValueError, match=r"what stays dense in the larger model needs"):
        wide(make_mlp(), 0.01, inputs=torch.rand(1, 20))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 1}, "density=1 keeps everything"),
        ({"density": 0}, "is outside"),
        ({"multiple": 0}, "multiple=0 is no whole number above 0"),
        ({"weights": "zero"}, "unknown weights 'zero'"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        wide(make_mlp(), **{"density": 0.25, "inputs": torch.rand(1, 20)} | options)
