import copy
import math

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.methods import Gradual, GraNet

EVERY, THIN_UNTIL, STEPS, START, END = 2, 8, 13, 0.8, 0.4


def build(method, pattern="unstructured", storage="dense", density=END):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    with torch.no_grad():
        model[0].weight *= 1.2
    sparsifier = cw.sparsify(model, pattern, density=density, method=method, storage=storage, steps=STEPS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sparsifier.attach(optimizer)
    return model, sparsifier, optimizer


def train(model, optimizer, steps, each=lambda step: None):
    for step in steps:
        optimizer.zero_grad()
        model(torch.randn(8, 12, generator=torch.Generator().manual_seed(step)).double()).square().mean().backward()
        optimizer.step()
        each(step + 1)


def kept(sparsifier):
    return {name: int(layer.sparsity.mask.sum()) for name, layer in sparsifier.layers.items()}


def test_thinning_across_layers_is_that_of_the_authors():
    """Their move in plain loops: one threshold for all layers, then in each the smallest for the steepest."""
    method = GraNet(
        every=EVERY, thin_until=THIN_UNTIL, until=1.0, start_density=START, fraction=cw.cosine(0.5, 0.005),
        across_layers=True,
    )  # fmt: skip
    model, sparsifier, optimizer = build(method)
    weights: dict[str, torch.Tensor] = {}
    grads: dict[str, torch.Tensor] = {}
    twin = copy.deepcopy(model)
    cw.bake(twin)
    other = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9)
    masks = {name: layer.sparsity.mask.clone() for name, layer in sparsifier.layers.items()}
    counts = []
    for step in range(STEPS):
        train(twin, other, [step], lambda step: None)
        for name, mask in masks.items():
            layer = twin.get_submodule(name)
            with torch.no_grad():
                layer.weight *= mask
                other.state[layer.weight]["momentum_buffer"] *= mask
            weights[name], grads[name] = layer.weight.detach().abs(), layer.weight.grad.abs()
        train(model, optimizer, [step])
        if (step + 1) % EVERY == 0 and step + 1 < STEPS:
            masks = move_of_the_authors(step + 1, weights, grads, masks)
            with torch.no_grad():
                for name, mask in masks.items():
                    weight = twin.get_submodule(name).weight
                    weight *= mask
                    other.state[weight]["momentum_buffer"] *= mask
        for name, mask in masks.items():
            assert torch.equal(sparsifier.layers[name].sparsity.mask, mask), (step, name)
        counts.append(kept(sparsifier))
    sizes = {name: layer.weight.numel() for name, layer in sparsifier.layers.items()}
    assert sum(counts[-1].values()) == round(END * sum(sizes.values()))
    assert counts[-1] != {name: round(END * size) for name, size in sizes.items()}
    assert counts[THIN_UNTIL - 1] == counts[-1]


def move_of_the_authors(step, weights, grads, masks):
    if step <= THIN_UNTIL:
        density = END + (START - END) * (1 - step / THIN_UNTIL) ** 3
        every = torch.cat([weights[name].flatten() for name in weights])
        # They round down, and then drop the last one too.
        number = math.floor(density * len(every) + 0.5)
        threshold = every.sort(descending=True, stable=True).values[number - 1]
        masks = {name: weights[name] >= threshold for name in weights}
    rate = 0.005 + (0.5 - 0.005) * (1 + math.cos(math.pi * step / STEPS)) / 2
    moved = {}
    for name, mask in masks.items():
        # They round up.
        exchanged = int(rate * int(mask.sum()))
        staying = (
            (weights[name] * mask).flatten().sort(descending=True, stable=True).indices[: int(mask.sum()) - exchanged]
        )
        new = torch.zeros(mask.numel(), dtype=torch.bool)
        new[staying] = True
        steepest = grads[name].flatten().masked_fill(new, -1).sort(descending=True, stable=True).indices[:exchanged]
        new[steepest] = True
        moved[name] = new.view(mask.shape)
    return moved


@pytest.mark.parametrize("storage", ["dense", "compressed"])
@pytest.mark.parametrize("pattern", ["unstructured", "block:4x3", "vector:4", "shuffled:4", "shuffled:4x2"])
@pytest.mark.parametrize("build_method", [Gradual, GraNet])
def test_all_layers_together_become_as_dense_as_each_would_alone(build_method, pattern, storage):
    if storage == "compressed" and pattern == "unstructured":
        pytest.skip("it has no compressed storage")
    spans = {"until": 9} if build_method is Gradual else {"until": 12, "thin_until": 9}
    found = []
    for across_layers in (False, True):
        method = build_method(every=3, start_density=0.7, across_layers=across_layers, **spans)
        model, sparsifier, optimizer = build(method, pattern, storage, density=0.25)
        by_step: list = []
        train(model, optimizer, range(12), lambda step, s=sparsifier, b=by_step: b.append(kept(s)))
        found.append(by_step)
    largest_unit = {"unstructured": 1, "block:4x3": 12, "vector:4": 4, "shuffled:4": 16, "shuffled:4x2": 8}[pattern]
    for alone, together in zip(*found, strict=True):
        # Each layer rounds once alone, and once more when it gets its share.
        assert abs(sum(alone.values()) - sum(together.values())) <= 3 * largest_unit
    assert found[0][-1] != found[1][-1]


def test_a_pattern_that_fixes_its_density_takes_no_part():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16))
    with torch.no_grad():
        model[1].weight *= 100
    method = Gradual(every=1, until=4, across_layers=True)
    sparsifier = cw.sparsify(model, {"*": "unstructured", "1": "2:4"}, density=0.25, method=method)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    sparsifier.attach(optimizer)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(4, 16)).square().mean().backward()
        optimizer.step()
    assert sparsifier.layers["1"].sparsity.pattern.allows(sparsifier.layers["1"].sparsity.mask)
    assert kept(sparsifier)["1"] == 128
    assert kept(sparsifier)["0"] + kept(sparsifier)["2"] == 128


def test_where_every_pattern_fixes_its_density_nothing_is_shared_out():
    model, sparsifier, optimizer = build(
        Gradual(every=EVERY, until=THIN_UNTIL, across_layers=True), "2:4", density=None
    )
    train(model, optimizer, range(STEPS))
    for layer in sparsifier.layers.values():
        assert layer.sparsity.pattern.allows(layer.sparsity.mask)
        assert int(layer.sparsity.mask.sum()) == layer.weight.numel() // 2


@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_such_a_run_is_saved_and_resumed(storage, tmp_path):
    method = GraNet(every=2, until=12, thin_until=9, across_layers=True)
    whole, first, second = (build(method, "block:4", storage, density=0.25) for _ in range(3))
    train(whole[0], whole[2], range(12))
    train(first[0], first[2], range(5))
    cw.save(first[0], tmp_path / "run", sparsifier=first[1], optimizer=first[2])
    cw.load(tmp_path / "run", second[0], sparsifier=second[1], optimizer=second[2])
    train(second[0], second[2], range(5, 12))
    for name, value in whole[0].state_dict().items():
        assert torch.equal(value, second[0].state_dict()[name]), name


@pytest.mark.parametrize("build_method", [Gradual, GraNet])
@pytest.mark.parametrize("drop", [cw.taylor, cw.gradient])
def test_layers_are_not_compared_by_gradients(build_method, drop):
    with pytest.raises(ValueError, match=r"across_layers=True, drop=.*one at a time has its gradient formed"):
        build_method(across_layers=True, drop=drop)


def test_a_dense_beginning_shares_out_nothing():
    method = cw.Switch(GraNet(every=2, begin=4, until=12, thin_until=9, across_layers=True), sparse_from=4)
    model, sparsifier, optimizer = build(method)
    counts = []
    train(model, optimizer, range(12), lambda step: counts.append(kept(sparsifier)))
    dense = {name: layer.weight.numel() for name, layer in sparsifier.layers.items()}
    assert counts[:3] == [dense] * 3
    assert sum(counts[-1].values()) == round(END * sum(dense.values()))
