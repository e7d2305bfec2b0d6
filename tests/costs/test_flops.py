from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import cutwork as cw
from cutwork.costs.flops import COUNTINGS, Flops, LayerFlops
from cutwork.methods import METHODS

from ..published import ResNet

models = pytest.importorskip("torchvision").models


def cifar_resnet18(width=64):
    return ResNet([2, 2, 2, 2], 100, width)


BUDGETS = {
    "resnet18-cifar": (cifar_resnet18, 32, 1_115_226_800, 11_220_132),
    "resnet18": (models.resnet18, 224, 3_647_128_359, 11_689_512),
    "resnet34": (models.resnet34, 224, 7_355_270_501, 21_797_672),
}


@pytest.mark.parametrize("name", BUDGETS)
def test_every_operation_gives_the_published_budget_to_the_unit(name):
    build, side, budget, num_parameters = BUDGETS[name]
    with torch.device("meta"):
        model, x = build(), torch.empty(1, 3, side, side)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    cost = cw.flops(model, x, counting="every-operation")
    assert (cost.dense, cost.sparse, cost.unseen) == (budget, budget, ())


@pytest.mark.parametrize(("width", "sparsity", "share"), [(90, 0.5, 0.992), (128, 0.75, 1.007)])
def test_a_wide_sparse_resnet_costs_the_published_share_of_the_dense_one(width, sparsity, share):
    # Without numbers: what masks leave of a count, other tests show on smaller models.
    with torch.device("meta"):
        model, x = cifar_resnet18(width), torch.empty(1, 3, 32, 32)
    cost = cw.flops(model, x, counting="every-operation")
    saved = sum((each.dense - each.rest) * sparsity for each in cost.layers if each.name.startswith("blocks."))
    assert (cost.dense - saved) / 1_115_226_800 == pytest.approx(share, abs=5e-4)


# ResNet-50 with all layers in ERK proportions, as printed with SRigL. What the masks scale there is the products; one
# addition for each output, of a folded norm, comes on top and stays.
ERK_SHARES = {0.75: 0.4767, 0.8: 0.4146, 0.9: 0.2429, 0.9375: 0.1532, 0.95: 0.1229, 0.99: 0.0257}


def num_outputs(layer, weight):
    return layer.dense * len(weight) // (2 * weight.numel())


def test_resnet50_costs_the_published_shares():
    with torch.device("meta"):
        model, x = models.resnet50(), torch.empty(1, 3, 224, 224)
    cost = cw.flops(model, x)
    weights = {layer.name: model.get_submodule(layer.name).weight for layer in cost.layers}
    extra = sum(num_outputs(layer, weights[layer.name]) for layer in cost.layers)
    assert cost.dense == 8_178_368_512
    assert cost.dense + extra == pytest.approx(8.189e9, abs=5e5)
    for sparsity, share in ERK_SHARES.items():
        densities = cw.erk({name: weight.shape for name, weight in weights.items()}, 1 - sparsity)
        sparse = sum(layer.dense * densities[layer.name] for layer in cost.layers)
        assert (sparse + extra) / (cost.dense + extra) == pytest.approx(share, abs=5e-5)


def test_a_sparsified_resnet50_costs_the_published_share():
    model = models.resnet50()
    cw.sparsify(model, "unstructured", sparsity=0.9, allocation="erk")
    cost = cw.flops(model, torch.rand(1, 3, 224, 224))
    extra = 8_189_483_496 - cost.dense
    assert (cost.sparse + extra) / (cost.dense + extra) == pytest.approx(ERK_SHARES[0.9], abs=5e-5)


def test_a_training_step_costs_what_the_formulas_of_the_methods_say():
    cost = Flops((LayerFlops("", "Linear", 10_000, 1_000),))
    f_sparse, f_dense, every = 1_000, 10_000, 100
    sparse, rigl = 3 * f_sparse, (3 * f_sparse * every + 2 * f_sparse + f_dense) / (every + 1)
    expected = {
        **dict.fromkeys(("static", "ssb", "set", "gradual"), sparse),
        **dict.fromkeys(("rigl", "dsb", "granet", "srigl"), rigl),
        # In four fifths of the steps weights outside the mask have a gradient too.
        "spartan": 2.2 * f_sparse + 0.8 * f_dense,
        **dict.fromkeys(("ste", "srste", "supermask"), 2 * f_sparse + f_dense),
    }
    assert {name: cost.sparse_training(name) for name in METHODS} == pytest.approx(expected)
    assert cost.sparse_training(cw.RigL(estimate=True)) == sparse
    assert cost.dense_training == 3 * f_dense
    with pytest.raises(ValueError, match="unknown method 'rigel'"):
        cost.sparse_training("rigel")


def test_a_training_step_costs_more_where_a_part_of_the_run_is_dense():
    cost = Flops((LayerFlops("", "Linear", 10_000, 1_000),))
    for switch, share in (
        (cw.Switch(cw.Static(), dense_from=0.75), 0.75),
        (cw.Switch(cw.Static(), sparse_from=0.25), 0.75),
        (cw.Switch(cw.Static(), 0.25, 0.5), 0.25),
    ):
        assert cost.sparse_training(switch) == pytest.approx(share * 3_000 + (1 - share) * 30_000)
        assert cost.sparse_training(switch.in_steps(40), steps=40) == cost.sparse_training(switch)
    rigl = cost.sparse_training("rigl")
    assert cost.sparse_training(cw.Switch(cw.RigL(), dense_from=0.5)) == pytest.approx((rigl + 30_000) / 2)
    with pytest.raises(ValueError, match=r"depends on the length of the run, .* step 30 .* pass steps="):
        cost.sparse_training(cw.Switch(cw.Static(), dense_from=30))


def conv1d():
    from transformers.pytorch_utils import Conv1D

    return Conv1D(12, 8)


# A layer, its input, and its products by hand.
PRODUCTS = {
    "linear": (lambda: nn.Linear(8, 12), (5, 8), 2 * 5 * 8 * 12),
    "linear on one vector": (lambda: nn.Linear(8, 12), (8,), 2 * 8 * 12),
    "linear on sequences": (lambda: nn.Linear(8, 12, bias=False), (3, 5, 8), 2 * 15 * 8 * 12),
    "Conv1D": (conv1d, (3, 5, 8), 2 * 15 * 8 * 12),
    "convolution": (lambda: nn.Conv2d(8, 12, 3, stride=2), (2, 8, 9, 9), 2 * 2 * 16 * 8 * 9 * 12),
    "grouped convolution": (lambda: nn.Conv2d(8, 12, 3, groups=4), (2, 8, 5, 5), 2 * 2 * 9 * 2 * 9 * 12),
    "unbatched convolution": (lambda: nn.Conv2d(8, 12, 3), (8, 5, 5), 2 * 9 * 8 * 9 * 12),
}


@pytest.mark.parametrize("method", ["static", "ste", "supermask", cw.RigL(every=1, estimate=True, until=9)])
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_mask_scales_the_products_of_its_layer_exactly(name, method):
    build, shape, products = PRODUCTS[name]
    model = nn.Sequential(build())
    cw.sparsify(model, "unstructured", density=0.3, method=method)
    mask = model[0].sparsity.mask
    cost = cw.flops(model, torch.rand(shape))
    assert (cost.dense, cost.unseen) == (products, ())
    assert cost.sparse * mask.numel() == products * int(mask.sum())
    assert cost.layers == (LayerFlops("0", type(build()).__name__, cost.dense, cost.sparse),)


# A layer, its input, and what the three kinds of operations come to: adds and multiplies of the weight, and the rest.
OPERATIONS = {
    "linear": (lambda: nn.Linear(8, 12), (5, 8), 5 * 12 * (7 + 8), 5 * 12),
    "Conv1D": (conv1d, (3, 5, 8), 15 * 12 * (7 + 8), 15 * 12),
    "convolution": (lambda: nn.Conv2d(8, 12, 3), (2, 8, 5, 5), 18 * (863 + 864), 18 * 12),
    "grouped": (lambda: nn.Conv2d(8, 12, 3, groups=4, bias=False), (2, 8, 5, 5), 18 * (215 + 216), 0),
    "Conv1d": (lambda: nn.Conv1d(8, 12, 3), (2, 8, 5), 6 * (287 + 288), 6 * 12),
    "Conv3d": (lambda: nn.Conv3d(2, 4, 1), (1, 2, 3, 3, 3), 27 * (7 + 8), 27 * 4),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(6), (2, 6, 3, 3), 0, 2 * (2 * 6 * 8 + 5 * 54 + 6)),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(6), (4, 6), 0, 4 * (5 * 6 + 6)),
    "LayerNorm": (lambda: nn.LayerNorm(6), (2, 3, 6), 0, 6 * (2 * 5 + 5 * 6 + 1)),
    "GroupNorm": (lambda: nn.GroupNorm(2, 6), (1, 6, 3, 3), 0, 2 * (2 * 26 + 5 * 27 + 1)),
    "MaxPool2d": (lambda: nn.MaxPool2d(3), (1, 2, 9, 9), 0, 18 * 8),
    "MaxPool2d with indices": (lambda: nn.MaxPool2d((3, 1), return_indices=True), (1, 2, 9, 9), 0, 54 * 2),
    "AvgPool2d": (lambda: nn.AvgPool2d(3), (1, 2, 9, 9), 0, 18 * 9),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d(1), (1, 2, 7, 7), 0, 2 * (48 + 1)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_follows_the_rule_of_the_layer(name):
    build, shape, scaled, rest = OPERATIONS[name]
    cost = cw.flops(build(), torch.rand(shape), counting="every-operation")
    assert (cost.dense, cost.sparse) == (scaled + rest, scaled + rest)
    model = nn.Sequential(build())
    if scaled and not isinstance(model[0], nn.Conv1d | nn.Conv3d):
        cw.sparsify(model, "unstructured", density=0.3)
        share = float(model[0].sparsity.mask.double().mean())
        cost = cw.flops(model, torch.rand(shape), counting="every-operation")
        assert scaled * share + rest - 2 < cost.sparse <= scaled * share + rest


def test_activations_count_only_where_asked():
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.PReLU(), nn.LeakyReLU(), nn.ELU(), nn.ReLU6())
    plain, all_of_it = (cw.flops(model, torch.rand(2, 4), counting=name).dense for name in list(COUNTINGS)[1:])
    assert plain == 2 * 10 * (3 + 4 + 1)
    assert all_of_it == plain + 2 * 10 * (1 + 1 + 1 + 1 + 2)


@pytest.mark.parametrize("counting", COUNTINGS)
def test_a_batch_costs_as_often_as_it_has_samples(counting):
    model = cifar_resnet18(8)
    one, three = (cw.flops(model, torch.rand(size, 3, 32, 32), counting=counting) for size in (1, 3))
    assert [3 * layer.dense for layer in one.layers] == [layer.dense for layer in three.layers]


@pytest.mark.parametrize("counting", COUNTINGS)
def test_a_layer_called_twice_counts_twice(counting):
    layer = nn.Linear(8, 8)
    once, twice = nn.Sequential(layer), nn.Sequential(layer, nn.ReLU(), layer)
    cw.sparsify(once, "unstructured", density=0.3)
    one, two = (cw.flops(model, torch.rand(1, 8), counting=counting).layers[0] for model in (once, twice))
    activation = 8 if counting.endswith("activations") else 0
    total = cw.flops(twice, torch.rand(1, 8), counting=counting)
    assert (two.dense, two.sparse) == (2 * one.dense, 2 * one.sparse)
    assert total.dense == 2 * one.dense + activation


@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_counts_its_products_open_and_closed(need_weights):
    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=need_weights)[0]

    model, x = Attend(), torch.rand(2, 6, 32)
    projections, products = 4 * 2 * 12 * 32 * 32, 2 * 2 * 2 * 6 * 6 * 32
    assert cw.flops(model, x).layers == (
        LayerFlops("attention", "MultiheadAttention", projections + products, projections + products),
    )
    cw.sparsify(model, "unstructured", density=0.25)
    cost = cw.flops(model, x)
    own = {layer.name: (layer.dense, layer.sparse) for layer in cost.layers}
    assert own.pop("attention") == (products, products)
    assert set(own.values()) == {(projections // 4, projections // 16)}
    assert sum(dense for dense, _ in own.values()) == projections


@pytest.mark.parametrize("counting", ["products", "every-operation"])
def test_a_transformer_layer_counts_what_it_counts_without_its_fused_path(counting):
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    x = torch.rand(2, 6, 32)
    assert cw.flops(layer.eval(), x, counting=counting) == cw.flops(layer.train(), x, counting=counting)
    expected = {"products": 2 * 12 * (4 * 32 * 32 + 2 * 32 * 64) + 2 * 2 * 2 * 6 * 6 * 32}
    assert cw.flops(layer, x, counting=counting).dense == expected.get(counting, 12 * (2 * 2 * 32 * 64 + 2 * 223))
    assert cw.flops(layer, x, counting=counting).unseen == (() if counting == "products" else ("self_attn",))


def test_products_add_up_to_what_torch_counts():
    model, x = models.resnet18(num_classes=10).eval(), torch.rand(1, 3, 64, 64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    assert cw.flops(model, x).dense == counter.get_total_flops()


class Functional(nn.Module):
    """One product before the layer and one after it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x @ x) @ x


def test_products_in_functions_belong_to_the_module_that_calls_them():
    cost = cw.flops(Functional(), torch.rand(4, 4))
    assert [(layer.name, layer.dense) for layer in cost.layers] == [("", 256), ("layer", 128)]


class Token(nn.Module):
    """Hands a view of a parameter to a layer, as transformers do that expand a class token."""

    def __init__(self):
        super().__init__()
        self.token, self.layer = nn.Parameter(torch.rand(1, 1, 4)), nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.token.expand(len(x), -1, -1)) + x


@pytest.mark.parametrize("counting", COUNTINGS)
def test_a_layer_that_is_given_a_view_of_a_parameter_counts_as_any(counting):
    expected = {"products": 3 * 32}.get(counting, 3 * (12 + 16 + 4))
    assert cw.flops(Token(), torch.rand(3, 1, 4), counting=counting).dense == expected


def test_layers_of_which_nothing_was_counted_are_named():
    model = nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 8), nn.LSTM(8, 8), nn.Identity())
    model[3].unused = nn.Linear(3, 3)
    assert cw.flops(model, torch.tensor([[1, 2]])).unseen == ("0", "2")
    transposed = nn.Sequential(nn.ConvTranspose2d(2, 2, 3), nn.BatchNorm2d(2))
    assert cw.flops(transposed, torch.rand(1, 2, 4, 4)).unseen == ()
    assert cw.flops(transposed, torch.rand(1, 2, 4, 4), counting="every-operation").unseen == ("0",)


def test_a_model_on_the_meta_device_counts_as_a_real_one():
    with torch.device("meta"):
        model, x = nn.TransformerEncoderLayer(32, 4, 64), torch.empty(2, 6, 32)
    real = nn.TransformerEncoderLayer(32, 4, 64)
    assert cw.flops(model, x) == cw.flops(real, torch.rand(2, 6, 32))


class Fragile(nn.Module):
    """Draws chance in training, keeps statistics, and stops where it is told."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 8))
        self.breaks = False

    def forward(self, x):
        x = self.layers(x + torch.rand_like(x))
        if self.breaks:
            raise RuntimeError("broken")
        return x


@pytest.mark.parametrize("counting", COUNTINGS)
@pytest.mark.parametrize("breaks", [False, True])
def test_the_model_and_the_sources_of_chance_stay_as_they_were(counting, breaks):
    model = Fragile().train()
    model.layers[1].eval()
    cw.sparsify(model, "unstructured", density=0.5, method="supermask")
    model(torch.rand(4, 8)).sum().backward()
    model.breaks = breaks
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    flags = [module.training for module in model.modules()]
    chance = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="broken") if breaks else nullcontext():
        cw.flops(model, torch.ones(4, 8), counting=counting)
    assert torch.equal(torch.get_rng_state(), chance)
    assert flags == [module.training for module in model.modules()]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for name, parameter in model.named_parameters():
        assert parameter.grad is grads[name] or torch.equal(parameter.grad, grads[name])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.is_grad_enabled() and torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("counting", COUNTINGS)
def test_a_model_without_anything_to_count_is_refused(counting):
    with pytest.raises(ValueError, match=rf"nothing in this Flatten was counted by counting='{counting[:8]}.*; pass"):
        cw.flops(nn.Flatten(), torch.rand(2, 2, 2), counting=counting)


def test_an_unknown_way_of_counting_is_refused():
    with pytest.raises(ValueError, match="unknown counting 'macs'; write 'products', 'every-operation'"):
        cw.flops(nn.Linear(2, 2), torch.rand(1, 2), counting="macs")


@pytest.mark.parametrize("counting", COUNTINGS)
@pytest.mark.parametrize("pattern", ["block:4", "block:5x3", "shuffled:4"])
def test_a_compressed_model_counts_what_a_dense_one_counts(pattern, counting):
    costs = []
    for storage in ("dense", "compressed"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(22, 18), nn.ReLU(), nn.Linear(18, 7, bias=False))
        cw.sparsify(model, pattern, density=0.3, storage=storage)
        costs.append(cw.flops(model, torch.rand(3, 22), counting=counting))
    assert costs[0] == costs[1]
