import copy

import pytest
import torch
from torch import nn

import cutwork as cw

OPTIMIZERS = [
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax),
    *(torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.ASGD, torch.optim.Adafactor),
]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128), nn.ReLU(), nn.Linear(128, 64), nn.Linear(64, 10))


def rates_by_name(model, **options):
    groups = cw.param_groups(model, **options)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(each)]: (group["lr"], group["weight_decay"]) for group in groups for each in group["params"]}


@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_a_sparse_layer_learns_faster_by_its_density_and_vectors_do_not_decay(storage):
    model = network()
    cw.sparsify(model, {"0": "block:16", "3": "block:16"}, density={"0": 0.25, "3": 0.125}, storage=storage)
    trained = "weight" if storage == "dense" else "values"
    assert rates_by_name(model, lr=0.1, weight_decay=0.01) == {
        f"0.{trained}": (0.4, 0.0025),
        f"3.{trained}": (0.8, 0.00125),
        "4.weight": (0.1, 0.01),
        **dict.fromkeys(("0.bias", "1.weight", "1.bias", "3.bias", "4.bias"), (0.1, 0.0)),
    }


def test_a_power_of_one_half_divides_by_the_square_root():
    model = network()
    cw.sparsify(model, {"0": "block:16"}, density=0.25)
    assert rates_by_name(model, lr=0.1, weight_decay=0.01, power=0.5)["0.weight"] == (0.2, 0.005)


def test_layers_of_one_density_are_one_group_and_a_dense_model_has_two():
    assert len(cw.param_groups(network(), lr=0.1, weight_decay=0.1)) == 2
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(8)))
    cw.sparsify(model, "block:16", density=0.25)
    assert len(cw.param_groups(model, lr=0.1)) == 2


def test_what_is_frozen_is_left_out_and_what_is_tied_appears_once():
    model = network()
    model[3] = nn.Linear(128, 128)
    model.append(nn.Linear(128, 128))
    model[5].weight = model[3].weight
    model[4].requires_grad_(False)
    cw.sparsify(model, {"3": "block:16", "5": "block:16"}, density=0.25)
    params = [each for group in cw.param_groups(model, lr=0.1) for each in group["params"]]
    assert len(params) == len({id(each) for each in params})
    assert {id(each) for each in params} == {id(each) for each in model.parameters() if each.requires_grad}


@pytest.mark.parametrize("method", [cw.Supermask(weight_bits=4), cw.RigL(every=10, until=75, estimate=True)])
def test_what_a_mask_is_learned_by_has_the_plain_rate_and_no_decay(method):
    model = network()
    cw.sparsify(model, {"3": "block:16"}, density=0.25, method=method)
    rates = rates_by_name(model, lr=0.1, weight_decay=0.01)
    learned = {name for name, _ in model.named_parameters() if "sparsity" in name}
    assert learned
    assert {rates[name] for name in learned} == {(0.1, 0.0)}
    assert rates["3.weight"] == (0.4, 0.0025)


def test_where_a_method_begins_dense_so_do_the_rates():
    model = network()
    cw.sparsify(model, {"3": "block:16"}, density=0.25, method=cw.Gradual(every=10, until=75))
    assert rates_by_name(model, lr=0.1)["3.weight"] == (0.1, 0.0)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("pattern", ["unstructured", "block:16", "vector:16"])
@pytest.mark.parametrize("density", [0.5, 0.1])
def test_a_step_changes_the_output_as_much_as_in_the_dense_layer(kind, pattern, density):
    torch.manual_seed(0)
    dense = nn.Linear(512, 512, bias=False)
    x, direction = torch.randn(1, 512), torch.randn(1, 512)
    changes = []
    for layer in (dense, copy.deepcopy(dense)):
        if changes:
            cw.sparsify(layer, pattern, density=density, init="random")
        optimizer = kind(cw.param_groups(layer, lr=1e-3))
        before = layer(x)
        (before * direction).sum().backward()
        optimizer.step()
        changes.append(((before - layer(x)) * direction.sign()).mean().item())
    assert changes[1] / changes[0] == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_step_shrinks_sparse_and_dense_weights_by_the_same_share(kind):
    model = network()
    cw.sparsify(model, {"3": "block:16"}, density=0.25)
    optimizer = kind(cw.param_groups(model, lr=0.1, weight_decay=0.1))
    before = [model[number].weight.detach().norm() for number in (3, 4)]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    shares = [(model[number].weight.norm() / length).item() for number, length in zip((3, 4), before, strict=True)]
    assert shares == pytest.approx([0.99, 0.99], rel=1e-5)


@pytest.mark.parametrize("storage", ["dense", "compressed"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_trains_with_them_and_goes_on_from_a_checkpoint(kind, storage, tmp_path):
    def start():
        model = network()
        # Adafactor remembers rows and columns, which no mask can move in compressed storage.
        method = cw.Static() if kind is torch.optim.Adafactor else cw.RigL(every=2, until=100)
        sparsifier = cw.sparsify(model, {"3": "block:16"}, density=0.25, method=method, storage=storage)
        optimizer = kind(cw.param_groups(model, lr=1e-3, weight_decay=0.01))
        sparsifier.attach(optimizer)
        return model, sparsifier, optimizer

    def train(model, optimizer, steps):
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            optimizer.zero_grad()
            model(torch.randn(8, 64, generator=generator)).square().mean().backward()
            optimizer.step()

    model, sparsifier, optimizer = start()
    train(model, optimizer, range(5))
    cw.save(model, tmp_path / "run.safetensors", sparsifier=sparsifier, optimizer=optimizer)
    train(model, optimizer, range(5, 9))
    again, its_sparsifier, its_optimizer = start()
    cw.load(tmp_path / "run.safetensors", again, sparsifier=its_sparsifier, optimizer=its_optimizer)
    train(again, its_optimizer, range(5, 9))
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))


def test_vectors_decay_too_where_that_is_asked_for():
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    assert [group["weight_decay"] for group in cw.param_groups(model, lr=0.1, weight_decay=0.2, decay_all=True)] == [
        0.2
    ]
