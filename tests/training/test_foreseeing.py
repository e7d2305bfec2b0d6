import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cutwork as cw

LAYERS = ("0", "3", "6")
INITS = {"snip": cw.snip, "force": cw.force, "grasp": cw.grasp}


def network():
    """Return a small network with convolutions, running statistics, chance and a linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)),
    )


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 3, 8, 8, generator=generator), torch.randint(0, 10, (8,), generator=generator)


def loss(model):
    x, y = batch()
    return F.cross_entropy(model(x), y)


def masks_of(model, names=LAYERS):
    return {name: model.get_submodule(name).sparsity.mask for name in names}


def keep_most(scores, count):
    """Keep the entries with the largest scores over all layers: the papers' own way, by one sorted list."""
    everything = torch.cat([each.flatten() for each in scores])
    threshold = everything.sort(descending=True).values[count - 1]
    return [each >= threshold for each in scores]


def num_weights(model):
    return sum(model.get_submodule(name).weight.numel() for name in LAYERS)


def gradients(model, masks=None, value=loss, **options):
    weights = [model.get_submodule(name).weight for name in LAYERS]
    twin = copy.deepcopy(model)
    for name, mask in zip(LAYERS, masks or [1] * 3, strict=True):
        with torch.no_grad():
            twin.get_submodule(name).weight.mul_(mask)
    found = torch.autograd.grad(value(twin), [twin.get_submodule(name).weight for name in LAYERS], **options)
    return [weight.detach() for weight in weights], found


def assert_same(model, expected):
    for name, mask in zip(LAYERS, expected, strict=True):
        assert torch.equal(model.get_submodule(name).sparsity.mask, mask), name


def test_snip_keeps_what_changes_the_loss_most_over_all_layers():
    model = network()
    weights, slopes = gradients(model)
    expected = keep_most([(w * g).abs() for w, g in zip(weights, slopes, strict=True)], round(0.1 * num_weights(model)))
    cw.sparsify(model, "unstructured", density=0.1, init=cw.snip(loss))
    assert_same(model, expected)


def test_grasp_drops_what_the_gradient_flow_does_best_without():
    model = network()
    weights, slopes = gradients(model, create_graph=True)
    twins = copy.deepcopy(model)
    parameters = [twins.get_submodule(name).weight for name in LAYERS]
    slopes = torch.autograd.grad(loss(twins), parameters, create_graph=True)
    # The gradient of half the square of the gradient is the Hessian times the gradient.
    curvature = torch.autograd.grad(sum(slope.square().sum() for slope in slopes) / 2, parameters)
    scores = [w * h for w, h in zip(weights, curvature, strict=True)]
    expected = keep_most(scores, round(0.3 * num_weights(model)))
    cw.sparsify(model, "unstructured", density=0.3, init=cw.grasp(loss))
    masks = list(masks_of(model).values())
    wrong = sum(int((mask != other).sum()) for mask, other in zip(masks, expected, strict=True))
    # Sums in another order may exchange neighbours in the ranking.
    assert wrong <= 4


@pytest.mark.parametrize("name", ["snip", "force"])
def test_rounds_thin_out_by_equal_factors_and_only_force_lets_weights_return(name):
    model, density, rounds = network(), 0.05, 4
    masks, ever_back = None, False
    for number in range(1, rounds + 1):
        weights, slopes = gradients(model, masks)
        scores = [(w * g).abs() for w, g in zip(weights, slopes, strict=True)]
        if name == "snip" and masks is not None:
            scores = [score.where(mask, -1) for score, mask in zip(scores, masks, strict=True)]
        new = keep_most(scores, round(density ** (number / rounds) * num_weights(model)))
        ever_back |= masks is not None and any((one & ~two).any() for one, two in zip(new, masks, strict=True))
        masks = new
    cw.sparsify(model, "unstructured", density=density, init=INITS[name](loss, rounds=rounds))
    assert_same(model, masks)
    assert ever_back == (name == "force")


def test_synflow_keeps_the_weights_with_most_paths_through_them():
    model, density, rounds = network(), 0.02, 10
    positive = copy.deepcopy(model).eval().double()
    for parameter in positive.parameters():
        parameter.data.abs_()
    masks = None
    for number in range(1, rounds + 1):
        weights, slopes = gradients(positive, masks, lambda twin: twin(torch.ones(1, 3, 8, 8).double()).sum())
        scores = [w * g for w, g in zip(weights, slopes, strict=True)]
        if masks is not None:
            scores = [score.where(mask, -1) for score, mask in zip(scores, masks, strict=True)]
        masks = keep_most(scores, round(density ** (number / rounds) * num_weights(model)))
    cw.sparsify(model, "unstructured", density=density, init=cw.synflow(torch.rand(1, 3, 8, 8), rounds=rounds))
    assert_same(model, masks)


def test_synflow_leaves_a_way_through_a_deep_network_where_snip_in_one_round_does_not():
    x = torch.rand(16, 32)
    inits = {
        "synflow": cw.synflow(x[:1]),
        "snip": cw.snip(lambda model: F.cross_entropy(model(x), torch.arange(16) % 10)),
    }
    is_alive = {}
    for name, init in inits.items():
        torch.manual_seed(0)
        sizes = [(32, 64), *[(64, 64)] * 6, (64, 10)]
        model = nn.Sequential(*(part for size in sizes for part in (nn.Linear(*size, bias=False), nn.ReLU())))
        cw.sparsify(model, "unstructured", density=0.003, init=init)
        paths = torch.ones(1, 32)
        for layer in model[::2]:
            paths = paths @ layer.weight.detach().abs().T
        is_alive[name] = bool(paths.any())
    assert is_alive == {"synflow": True, "snip": False}


def test_synflow_bears_a_sum_over_paths_that_single_precision_does_not():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(12)))
    paths = torch.ones(1, 64)
    for layer in model:
        layer.weight.data.mul_(1e3)
        paths = paths @ layer.weight.detach().abs()
    assert paths.isinf().all()
    cw.sparsify(model, "unstructured", density=0.1, init=cw.synflow(torch.ones(1, 64), rounds=5))
    assert sum(int(layer.sparsity.mask.sum()) for layer in model) == pytest.approx(0.1 * 12 * 64 * 64, abs=12)


@pytest.mark.parametrize("storage", ["dense", "compressed"])
@pytest.mark.parametrize("pattern", ["block:4", "vector:8", "shuffled:4"])
@pytest.mark.parametrize(
    "init", [cw.snip(loss), cw.grasp(loss), cw.force(loss, rounds=3), cw.synflow(batch()[0], rounds=3)]
)
def test_whole_units_are_kept_and_both_storages_choose_alike(init, pattern, storage):
    model = network()
    sparsifier = cw.sparsify(model, {"3": pattern, "6": pattern}, density=0.25, init=init, storage=storage)
    kept = sum(int(layer.sparsity.mask.sum()) for layer in sparsifier.layers.values())
    total = sum(layer.sparsity.mask.numel() for layer in sparsifier.layers.values())
    assert kept / total == pytest.approx(0.25, abs=0.03)
    other = network()
    again = cw.sparsify(other, {"3": pattern, "6": pattern}, density=0.25, init=init)
    for name, layer in sparsifier.layers.items():
        mask = layer.sparsity.mask_matrix()
        assert layer.sparsity.pattern.allows(mask)
        assert torch.equal(mask, again.layers[name].sparsity.mask_matrix())


def test_blocks_are_ranked_by_their_mean_over_all_layers():
    model = network()
    weights, slopes = gradients(model)
    means = [
        (w * g).abs().movedim(1, -1).reshape(len(w), -1).unfold(0, 2, 2).unfold(1, 4, 4).mean((2, 3))
        for w, g in list(zip(weights, slopes, strict=True))[1:]
    ]
    count = round(0.2 * sum(mean.numel() for mean in means))
    cw.sparsify(model, {"3": "block:2x4", "6": "block:2x4"}, density=0.2, init=cw.snip(loss))
    for name, kept in zip(LAYERS[1:], keep_most(means, count), strict=True):
        matrix = model.get_submodule(name).sparsity.mask_matrix()
        assert torch.equal(matrix[::2, ::4], kept)


@pytest.mark.parametrize(
    "init", [cw.snip(loss, across_layers=False), cw.synflow(batch()[0], rounds=9, across_layers=False)]
)
def test_layers_may_have_their_own_budgets(init):
    model = network()
    densities = {"0": 0.5, "3": 0.25, "6": 0.1}
    cw.sparsify(model, "unstructured", density=densities, init=init)
    for name, mask in masks_of(model).items():
        assert float(mask.float().mean()) == pytest.approx(densities[name], abs=0.01)
    model = network()
    shared = cw.erk({name: tuple(model.get_submodule(name).weight.shape) for name in LAYERS}, 0.2)
    cw.sparsify(model, "unstructured", density=0.2, allocation="erk", init=init)
    for name, mask in masks_of(model).items():
        assert float(mask.float().mean()) == pytest.approx(shared[name], abs=0.01)


def test_patterns_that_fix_the_density_take_no_part_in_the_ranking():
    model = network()
    cw.sparsify(model, {"3": "2:4", "6": "block:4"}, density=0.2, init=cw.snip(loss, rounds=3))
    assert float(masks_of(model, ["3"])["3"].float().mean()) == 0.5
    assert float(masks_of(model, ["6"])["6"].float().mean()) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("method", ["static", cw.RigL(every=10, until=50), cw.SRigL(every=10, until=50), cw.STE()])
def test_every_method_begins_from_them(method):
    model = network()
    cw.sparsify(model, {"6": "unstructured"}, density=0.25, method=method, init=cw.snip(loss))
    assert float(model[6].sparsity.mask.float().mean()) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("init", [cw.snip(loss), cw.grasp(loss), cw.synflow(batch()[0], rounds=2)])
def test_all_but_the_masks_stays_as_it_was(init):
    model = network().train()
    model[1].eval()
    model[6].weight.requires_grad_(False)
    loss(model).backward()
    with torch.no_grad():
        model[1].running_mean.fill_(0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    slopes = {name: parameter.grad for name, parameter in model.named_parameters()}
    modes, chance = [module.training for module in model.modules()], torch.get_rng_state()
    cw.sparsify(model, {"0": "unstructured", "6": "unstructured"}, density=0.3, init=init, rescale=False)
    after = {name: value for name, value in model.state_dict().items() if "mask" not in name}
    for name, value in before.items():
        mask = model.get_submodule(name.rpartition(".")[0]).sparsity.mask if name in ("0.weight", "6.weight") else True
        assert torch.equal(after[name], value * mask), name
    assert {name: parameter.grad for name, parameter in model.named_parameters()} == slopes
    assert [module.training for module in model.modules() if "sparsity" not in type(module).__module__] == modes
    assert torch.equal(torch.get_rng_state(), chance)
    assert not model[6].weight.requires_grad


def test_chance_in_the_model_begins_at_the_seed():
    def choose(seed, state):
        model = network()
        model.insert(6, nn.Dropout())
        torch.manual_seed(state)
        cw.sparsify(model, {"7": "unstructured"}, density=0.1, init=cw.snip(loss), seed=seed)
        return model[7].sparsity.mask

    assert torch.equal(choose(0, 1), choose(0, 2))
    assert not torch.equal(choose(0, 1), choose(3, 1))


def test_each_round_may_draw_other_batches_but_both_passes_of_grasp_draw_the_same():
    drawn = []

    def drawing(model):
        drawn.append(torch.randint(1000, (1,)).item())
        return loss(model)

    cw.sparsify(network(), "unstructured", density=0.3, init=cw.force(drawing, rounds=3))
    assert len(set(drawn)) == 3
    drawn.clear()
    cw.sparsify(network(), "unstructured", density=0.3, init=cw.grasp(drawing))
    assert len(drawn) == 2 and drawn[0] == drawn[1]


def test_losses_that_are_yielded_add_up_one_batch_at_a_time():
    def yielding(model):
        for x, y in zip(batch()[0].split(4), batch()[1].split(4), strict=True):
            yield F.cross_entropy(model(x), y)

    def adding(model):
        return sum(yielding(model))

    for init in (cw.snip, cw.grasp):
        one, two = network().eval(), network().eval()
        cw.sparsify(one, "unstructured", density=0.1, init=init(yielding))
        cw.sparsify(two, "unstructured", density=0.1, init=init(adding))
        wrong = sum(int((masks_of(one)[name] != masks_of(two)[name]).sum()) for name in LAYERS)
        assert wrong <= 4 * (init is cw.grasp)


def test_layers_that_share_a_weight_are_one():
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 4))
    model[2].weight = model[0].weight
    x = torch.randn(8, 16)

    def value(twin):
        return twin(x).square().sum()

    (slope,) = torch.autograd.grad(value(model), [model[0].weight])
    scores = (slope * model[0].weight).abs().detach()
    cw.sparsify(model, {"[02]": "unstructured"}, density=0.25, init=cw.snip(value))
    assert model[0].sparsity is model[2].sparsity
    assert torch.equal(model[0].sparsity.mask, keep_most([scores], 64)[0])


@pytest.mark.parametrize("init", [cw.snip, cw.grasp])
def test_attention_is_opened_in_the_copy_only(init):
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(32, 2, 32, batch_first=True)
    x = torch.randn(2, 5, 32)
    attention = type(model.self_attn)

    def value(twin):
        assert type(model.self_attn) is attention
        return twin(x).square().mean() + twin(x).sin().mean()

    sparsifier = cw.sparsify(model, {"self_attn.*": "block:4"}, density=0.25, init=init(value))
    assert len(sparsifier.layers) == 4


def test_a_layer_that_would_lose_everything_keeps_one_unit_and_is_named(caplog):
    for across_layers in (True, False):
        model = network()
        with torch.no_grad():
            model[6].weight.mul_(1e-6)
            model[6].bias.mul_(1e6)
        init = cw.snip(
            lambda twin: twin[:6](batch()[0]).square().mean() + twin(batch()[0]).square().mean(),
            across_layers=across_layers,
        )
        caplog.clear()
        with caplog.at_level(logging.WARNING, "cutwork"):
            cw.sparsify(model, {"3": "block:2", "6": "block:2"}, density=0.05, init=init)
        kept = int(model[6].sparsity.mask.sum())
        assert kept == 4 if across_layers else kept > 4
        assert [record.getMessage() for record in caplog.records] == [
            "by snip 1 layer would keep nothing, so its best unit stays: 6; a larger density, or across_layers=False, "
            "leaves them more"
        ] * across_layers


def test_what_cannot_be_ranked_is_an_error_that_names_the_layer():
    model = network()
    before = copy.deepcopy(model.state_dict())
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    with pytest.raises(ValueError, match=r"^0: its scores by snip are all zero, so they rank nothing.*'0': 'dense'"):
        cw.sparsify(model, "unstructured", density=0.1, init=cw.snip(loss))
    model = network()
    model[0].weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"^0: its scores by snip are not all finite; look for inf and nan in the"):
        cw.sparsify(model, "unstructured", density=0.1, init=cw.snip(loss))
    with pytest.raises(ValueError, match=r"^6: snip finds no way from its weight to the result; call the whole model"):
        cw.sparsify(network(), "unstructured", density=0.1, init=cw.snip(lambda twin: twin[:6](batch()[0]).sum()))
    model = network()
    with pytest.raises(TypeError, match="returns a tensor"):
        cw.sparsify(model, "unstructured", density=0.1, init=cw.snip(lambda twin: 3.0))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert type(model[0]) is nn.Conv2d


def test_two_ways_to_share_out_are_refused():
    with pytest.raises(ValueError, match=r"got allocation='erk', which would go unread; leave it out, or write snip\("):
        cw.sparsify(network(), "unstructured", density=0.1, allocation="erk", init=cw.snip(loss))
    with pytest.raises(ValueError, match=r"got density=\{'\*': 0.1\}, which would go unread"):
        cw.sparsify(network(), "unstructured", density={"*": 0.1}, init=cw.force(loss))
    with pytest.raises(ValueError, match="does not reach Supermask"):
        cw.sparsify(network(), "unstructured", density=0.1, method="supermask", init=cw.snip(loss))


def test_what_has_no_numbers_yet_is_refused():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(32, 32))
    with pytest.raises(ValueError, match="0 is on the meta device, where a model cannot run, which synflow has to"):
        cw.sparsify(
            model, "block:8", density=0.5, init=cw.synflow(torch.ones(1, 32)), storage="compressed", device="cpu"
        )


def test_synflow_leaves_tokens_as_they_are_and_takes_inputs_by_name():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(8, 16), nn.Linear(16, 16)

        def forward(self, tokens, scale=None):
            return {"out": self.head(self.embed(tokens)) * scale, "tokens": tokens}

    torch.manual_seed(0)
    model = Reader()
    tokens = torch.tensor([[5, 2]])
    paths = model.embed.weight.abs()[tokens[0]].sum(0) * model.head.weight.abs()
    expected = keep_most([paths.detach().double()], 64)[0]
    cw.sparsify(
        model, "unstructured", density=0.25, init=cw.synflow({"tokens": tokens, "scale": torch.rand(1)}, rounds=1)
    )
    assert torch.equal(model.head.sparsity.mask, expected)
