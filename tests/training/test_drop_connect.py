import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cutwork as cw
from cutwork.training.drop_connect import DropConnect, read_drop_connect

PATTERNS = ["block:4", "block:5x3", "vector:4", "shuffled:4"]
METHODS = {
    "static": cw.Static(),
    "rigl": cw.RigL(every=2, until=9),
    "rigl by estimate": cw.RigL(every=2, until=9, estimate=True),
    "set": cw.set_(every=2, until=9),
    "gradual": cw.Gradual(every=2, until=7),
}


def prepared(storage="dense", pattern="block:4", method="static", drop_connect: object = 0.5, seed=0):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(8 * 16, 24), nn.GELU(), nn.Linear(24, 6)),
    ).double()
    sparsifier = cw.sparsify(
        *(model, {"*": pattern, "0": "block:2"}),
        density=0.4,
        method=METHODS.get(method, method),
        storage=storage,
        drop_connect=drop_connect,
        steps=10,
        seed=seed,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier.attach(optimizer)
    return model, sparsifier, optimizer


def loss_of(model, step):
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(8, 3, 6, 6, generator=generator).double(), torch.randint(0, 6, (8,), generator=generator)
    return F.cross_entropy(model(x), y)


def train(model, optimizer, steps):
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def gates(model):
    return [layer.sparsity.gate.clone() for layer in model if hasattr(layer, "sparsity")]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", METHODS)
def test_both_storages_leave_out_the_same(pattern, method):
    model, sparsifier, optimizer = prepared("compressed", pattern, method)
    twin, twins_sparsifier, twins_optimizer = prepared("dense", pattern, method)
    torch.testing.assert_close(train(model, optimizer, range(8)), train(twin, twins_optimizer, range(8)))
    for name, layer in sparsifier.layers.items():
        other = twins_sparsifier.layers[name]
        assert torch.equal(layer.sparsity.mask, other.sparsity.mask)
        torch.testing.assert_close(layer.sparsity.matrix(layer.trained), other.sparsity.matrix(other.trained))


@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_units_are_left_out_whole_and_the_others_make_up_for_it(storage):
    model, _, _ = prepared(storage, drop_connect=0.25)
    layer = model[3]
    x = torch.randn(5, 8 * 16).double()
    weight = layer.sparsity.matrix(layer.trained)
    effective = (layer(torch.eye(8 * 16).double()) - layer.bias).T.detach()
    ratio = torch.where(weight != 0, effective / weight, torch.nan)
    tiles = ratio.unfold(0, 4, 4).unfold(1, 4, 4).flatten(2)
    kept = tiles[~tiles.isnan().any(-1)]
    assert ((kept == 0).all(1) | ((kept - 4 / 3).abs() < 1e-9).all(1)).all()
    assert 0.1 < float((kept == 0).all(1).double().mean()) < 0.4
    model.eval()
    torch.testing.assert_close(layer(x), F.linear(x, weight, layer.bias))


@pytest.mark.parametrize("method", [cw.Supermask(), cw.srste(), cw.Static()])
@pytest.mark.parametrize("pattern", ["unstructured", "block:4", "2:4"])
def test_every_way_to_hold_a_mask_has_it_and_single_weights_are_units_too(method, pattern):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32, bias=False))
    density = None if pattern == "2:4" else 0.5
    sparsifier = cw.sparsify(model, pattern, density=density, method=method, drop_connect=0.5)
    sparsifier.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    layer = model[0]
    used = layer(torch.eye(32)).T
    whole = layer.sparsity(layer.weight)
    assert torch.equal(used, whole * layer.sparsity.gate)
    share = float((used[layer.sparsity.mask] == 0).float().mean())
    assert 0.3 < share < 0.7
    # Behind the mask gradients pass as they did.
    assert (layer.sparsity.gate[~layer.sparsity.mask] == 1).all()


def test_what_is_left_out_gets_no_gradient_in_its_step():
    model, _, _ = prepared()
    loss_of(model, 0).backward()
    layer = model[5]
    out = layer.sparsity.mask & (layer.sparsity.gate == 0)
    assert out.any()
    assert not layer.weight.grad[out].any()
    assert layer.weight.grad[layer.sparsity.mask & ~out].all()


@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_each_step_layer_and_seed_has_its_own_chance_which_micro_batches_share(storage):
    model, _, optimizer = prepared(storage)
    first = gates(model)
    loss_of(model, 0).backward()
    assert all(torch.equal(one, two) for one, two in zip(first, gates(model), strict=True))
    optimizer.step()
    assert not any(torch.equal(one, two) for one, two in zip(first, gates(model), strict=True))
    same, _, _ = prepared(storage)
    assert all(torch.equal(one, two) for one, two in zip(first, gates(same), strict=True))
    other, _, _ = prepared(storage, seed=1)
    assert not any(torch.equal(one, two) for one, two in zip(first, gates(other), strict=True))


@pytest.mark.parametrize("storage", ["dense", "compressed"])
@pytest.mark.parametrize("method", ["static", "rigl", "gradual"])
@pytest.mark.parametrize("order", ["model first", "model last"])
def test_a_run_resumes_to_the_bit(storage, method, order):
    model, _, optimizer = prepared(storage, "shuffled:4", method)
    train(model, optimizer, range(5))
    states = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    expected = train(model, optimizer, range(5, 9))
    resumed, _, its_optimizer = prepared(storage, "shuffled:4", method)
    pairs = list(zip([resumed, its_optimizer], states, strict=True))
    for target, state in pairs if order == "model first" else reversed(pairs):
        target.load_state_dict(state)
    assert train(resumed, its_optimizer, range(5, 9)) == expected


def test_a_move_by_the_gradient_sees_it_all():
    model, sparsifier, optimizer = prepared(method="rigl")
    train(model, optimizer, range(1))
    assert sparsifier.method.due(2)
    assert all((gate == 1).all() for gate in gates(model))
    model, sparsifier, optimizer = prepared(method="set")
    train(model, optimizer, range(1))
    assert sparsifier.method.due(2)
    assert any((gate == 0).any() for gate in gates(model))


def test_schedules_change_the_share_over_the_run():
    shares = []
    model, _, optimizer = prepared(pattern="unstructured", drop_connect=cw.linear(0.8, 0.0))
    for step in range(12):
        gate = model[3].sparsity.gate[model[3].sparsity.mask]
        shares.append(float((gate == 0).double().mean()))
        train(model, optimizer, [step])
    assert shares == pytest.approx([max(0.0, 0.8 - 0.08 * step) for step in range(12)], abs=0.06)
    assert [read_drop_connect(cw.cosine(0.0, 0.5), 4).rate(step) for step in (0, 2, 4, 9)] == [0.0, 0.25, 0.5, 0.5]
    assert read_drop_connect(0.25, None) == DropConnect(cw.constant(0.25), None)
    assert read_drop_connect(0.25, None).rate(7) == 0.25


@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_copies_and_files_have_none_of_it_and_neither_has_a_model_that_is_let_go(storage, tmp_path):
    model, sparsifier, optimizer = prepared(storage)
    plain, _, _ = prepared(storage, drop_connect=None)
    assert model.state_dict().keys() == plain.state_dict().keys()
    twin = copy.deepcopy(model)
    assert loss_of(twin, 0) == loss_of(plain, 0) != loss_of(model, 0)
    twin.load_state_dict(model.state_dict())
    cw.save(model, tmp_path / "model.safetensors", optimizer=optimizer, sparsifier=sparsifier)
    sparsifier.detach()
    assert loss_of(model, 0) == loss_of(plain, 0)
    sparsifier.attach(optimizer)
    assert loss_of(model, 0) != loss_of(plain, 0)


@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_averages_find_the_same_buffers_in_the_model_as_in_its_copy(storage):
    model, sparsifier, optimizer = prepared(storage, method="rigl")
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    sparsifier.take_along(average)
    assert [name for name, _ in average.module.named_buffers()] == [name for name, _ in model.named_buffers()]
    for step in range(4):
        train(model, optimizer, [step])
        average.update_parameters(model)
    assert loss_of(average.train(), 9).isfinite()


def test_the_precision_of_a_model_may_change_while_units_are_left_out():
    model, _, _ = prepared("compressed")
    model.float()
    assert model[3](torch.randn(2, 8 * 16)).dtype == model[3].sparsity.gate.dtype == torch.float32


def test_a_copy_of_model_sparsifier_and_optimizer_goes_on_alike():
    model, sparsifier, optimizer = prepared(method="rigl")
    train(model, optimizer, range(3))
    twin, its_sparsifier, its_optimizer = copy.deepcopy((model, sparsifier, optimizer))
    its_sparsifier.attach(its_optimizer)
    assert train(twin, its_optimizer, range(3, 8)) == train(model, optimizer, range(3, 8))


@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_compiled_layers_leave_out_the_same_without_compiling_again(storage):
    model, _, optimizer = prepared(storage, method="rigl")
    twin, _, twins_optimizer = prepared(storage, method="rigl")
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        losses = train(compiled, optimizer, range(6))
    torch._dynamo.reset()
    torch.testing.assert_close(losses, train(twin, twins_optimizer, range(6)))


def test_without_attach_a_warning_says_so(caplog, monkeypatch):
    monkeypatch.setattr("cutwork.training.attendance.MANY_STEPS", 2)
    model = nn.Sequential(nn.Linear(16, 16))
    cw.sparsify(model, "block:4", density=0.5, drop_connect=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        model(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()
    assert "no sparsifier is attached, so its mask does not move and nothing is left out" in caplog.text


BAD = {
    "a word": ("half", None, TypeError, "drop_connect='half' is neither a number nor a schedule; write 0.1"),
    "a truth": (True, None, TypeError, "drop_connect=True is neither a number nor a schedule"),
    "everything": (1.0, None, ValueError, r"drop_connect=1.0 is outside \[0, 1\); 0.1 leaves out"),
    "less than nothing": (cw.linear(-0.1), 10, ValueError, r"is outside \[0, 1\)"),
    "no steps": (cw.linear(0.0, 0.5), None, ValueError, "changes over the run, whose length is missing; pass steps="),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_share_is_refused(case):
    given, steps, error, message = BAD[case]
    model = nn.Sequential(nn.Linear(16, 16))
    with pytest.raises(error, match=message):
        cw.sparsify(model, "block:4", density=0.5, drop_connect=given, steps=steps)
    assert type(model[0]) is nn.Linear
