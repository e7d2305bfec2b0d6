import pytest
import torch
from torch import nn

import cutwork as cw


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 30), nn.Embedding(4, 4))


def test_density_and_sparsity_by_glob():
    model = mlp()
    cw.sparsify(model, "unstructured", sparsity={"*": 0.9, "2": 0.5})
    assert float(model[0].sparsity.mask.float().mean()) == pytest.approx(0.1, abs=1e-3)
    assert float(model[2].sparsity.mask.float().mean()) == pytest.approx(0.5, abs=1e-3)


def test_patterns_that_fix_their_density_stand_beside_others():
    model = mlp()
    cw.sparsify(model, {"0": "2:4", "2": "block:2"}, density=0.1)
    assert float(model[0].sparsity.mask.float().mean()) == 0.5
    assert float(model[2].sparsity.mask.float().mean()) == pytest.approx(0.1, abs=1e-2)


@pytest.mark.parametrize("patterns", [{"0": "2:4", "2": "block:2"}, {"0": "2:4", "2": "1:4"}])
@pytest.mark.parametrize("amounts", [{"density": {"0": 0.5, "2": 0.25}}, {"sparsity": {"*": 0.75, "0": 0.5}}])
def test_a_mapping_may_say_what_patterns_fix(patterns, amounts):
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
    sparsifier = cw.sparsify(model, patterns, **amounts)
    assert [float(layer.sparsity.mask.float().mean()) for layer in sparsifier.layers.values()] == [0.5, 0.25]


def test_an_allocation_may_be_a_function():
    model = mlp()
    cw.sparsify(model, "unstructured", density=0.5, allocation=lambda shapes, density: dict.fromkeys(shapes, 1.0))
    assert model[0].sparsity.mask.all()


def test_what_is_left_shares_out_the_density_of_what_is_left():
    model = nn.ModuleDict({"a": nn.Linear(64, 64), "b": nn.Linear(64, 128), "narrow": nn.Linear(16, 16)})
    skipping = cw.sparsify(model, "block:16", density=0.25, allocation=narrowest_last, skip=True)
    assert list(skipping.skipped) == ["narrow"]
    assert [layer.sparsity.density for layer in skipping.layers.values()] == [0.25, 0.25]


def narrowest_last(shapes, density):
    """Keep less of all where a layer called "narrow" is among them, and hardly anything of that."""
    return dict.fromkeys(shapes, density) if "narrow" not in shapes else {**dict.fromkeys(shapes, 0.1), "narrow": 0.01}
