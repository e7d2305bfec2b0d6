import copy
import pickle

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

import cutwork as cw


def prepared(method="static", pattern="unstructured", density: float | None = 0.25, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
    return model, cw.sparsify(model, pattern, density=density, method=method, **options)


def train(model, optimizer, steps=1):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()


MOVING = {
    "set": cw.set_(every=2, until=9),
    "gradual": cw.Gradual(every=2, until=9),
    "rigl": cw.RigL(every=2, until=9),
    "rigl by estimate": cw.RigL(every=2, until=9, estimate=True),
    "granet": cw.GraNet(every=2, until=9, thin_until=6),
    "srigl": cw.SRigL(every=2, until=9),
}


@pytest.mark.parametrize("storage", ["dense", "compressed"])
@pytest.mark.parametrize("frozen", ["before", "after"])
@pytest.mark.parametrize("method", MOVING)
def test_a_frozen_layer_does_not_move_and_that_is_said_once(method, frozen, storage, caplog):
    model, sparsifier = prepared(MOVING[method], "block:2", storage=storage)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = [layer.sparsity.matrix(layer.trained) for layer in sparsifier.layers.values()]
    masks = [layer.sparsity.mask.clone() for layer in sparsifier.layers.values()]
    if frozen == "before":
        model[0].requires_grad_(False)
    sparsifier.attach(optimizer)
    model[0].requires_grad_(False)
    train(model, optimizer, 8)
    assert torch.equal(model[0].sparsity.mask, masks[0]) and not torch.equal(model[2].sparsity.mask, masks[1])
    assert torch.equal(model[0].sparsity.matrix(model[0].trained), before[0])
    assert caplog.text.count("the masks of frozen layers do not move: 0\n") == 1
    model[0].requires_grad_(True)
    train(model, optimizer, 1)


def test_scores_train_on_over_a_frozen_weight():
    model, sparsifier = prepared(cw.Supermask(), "block:4")
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
    sparsifier.attach(optimizer)
    before = model[0].sparsity.mask.clone()
    train(model, optimizer, 5)
    assert not torch.equal(before, model[0].sparsity.mask)


def penalized_loss(run, x):
    (slope,) = torch.autograd.grad(run(x).square().sum(), x, create_graph=True)
    return run(x).square().sum() + 50 * slope.square().sum()


@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_a_gradient_penalty_counts_in_what_a_move_looks_at(storage, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8)).double()
    dense = copy.deepcopy(model)
    sparsifier = cw.sparsify(model, "block:4", density=0.25, method=cw.RigL(every=1, until=9), storage=storage)
    for name, layer in sparsifier.layers.items():
        dense.get_submodule(name).weight.data = layer.sparsity.matrix(layer.trained)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    x = torch.randn(4, 16, dtype=torch.float64, requires_grad=True)
    penalized_loss(dense, x).backward()
    penalized_loss(model, x).backward()
    seen, make_view = {}, sparsifier._view

    def look(name, *rest, **options):
        view = make_view(name, *rest, **options)
        seen[name] = view.grad
        return view

    monkeypatch.setattr(sparsifier, "_view", look)
    optimizer.step()
    for name in sparsifier.layers:
        torch.testing.assert_close(seen[name], dense.get_submodule(name).weight.grad, rtol=1e-4, atol=1e-6)


def test_attaching_needs_an_optimizer_and_happens_once():
    model, sparsifier = prepared()
    with pytest.raises(ValueError, match=r"attach\(\) got no optimizer; pass the one"):
        sparsifier.attach()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    with pytest.raises(ValueError, match="attached already; detach"):
        sparsifier.attach(optimizer)
    sparsifier.detach()
    sparsifier.attach(optimizer)
    train(model, optimizer)
    assert sparsifier.steps_done == 1


def test_a_detached_sparsifier_counts_nothing():
    model, sparsifier = prepared(cw.RigL(every=1, until=9))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    sparsifier.detach()
    train(model, optimizer, 2)
    assert sparsifier.steps_done == 0
    assert not float(model[0].sparsity.gain)
    assert "cutwork:0" not in optimizer.state_dict()


def test_stepping_by_hand_moves_the_same_masks_as_hooks():
    finals = []
    for hooks in (True, False):
        model, sparsifier = prepared(cw.RigL(every=2, until=9))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        sparsifier.attach(optimizer, hooks=hooks)
        torch.manual_seed(1)
        for _ in range(8):
            train(model, optimizer)
            if not hooks:
                sparsifier.step()
        finals.append(model[0].sparsity.mask)
        assert sparsifier.steps_done == 8
    assert torch.equal(*finals)


def test_stepping_before_attaching_is_refused():
    _, sparsifier = prepared()
    with pytest.raises(ValueError, match="attach\\(optimizer\\) first"):
        sparsifier.step()


def test_a_gradient_that_is_not_finite_is_refused_before_any_mask_moves():
    model, sparsifier = prepared(cw.RigL(every=1, until=9))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    masks = [layer.sparsity.mask.clone() for layer in sparsifier.layers.values()]
    model(torch.randn(4, 16)).square().sum().backward()
    model[2].weight.grad[0, 0] = torch.nan
    with pytest.raises(ValueError, match="2: the gradient of step 1 is not finite"):
        optimizer.step()
    assert all(
        torch.equal(mask, layer.sparsity.mask) for mask, layer in zip(masks, sparsifier.layers.values(), strict=True)
    )


GROWING = [
    cw.RigL(every=1, until=9),
    cw.RigL(every=1, until=9, estimate=True),
    cw.GraNet(every=1, until=9, thin_until=5, start_density=0.25),
    cw.GraNet(every=1, until=9, thin_until=5, drop=cw.taylor),
    cw.SRigL(every=1, until=9),
    cw.Gradual(every=1, until=9, start_density=0.25, drop=cw.taylor),
]


@pytest.mark.parametrize("method", GROWING)
def test_a_layer_that_took_no_part_in_the_step_keeps_its_mask(method):
    model, sparsifier = prepared(method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    before = [layer.sparsity.mask.clone() for layer in sparsifier.layers.values()]
    model[0](torch.randn(4, 16)).square().sum().backward()
    optimizer.step()
    assert torch.equal(model[2].sparsity.mask, before[1])
    assert sparsifier.steps_done == 1


def test_a_copy_made_in_a_listening_step_is_quiet():
    model, sparsifier = prepared(cw.RigL(every=2, until=9))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sparsifier.attach(optimizer)
    train(model, optimizer)
    assert float(model[0].sparsity.gain) > 0
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other = torch.optim.AdamW(copied.parameters(), lr=1e-2)
        train(copied, other, 3)
        assert not copied[0].weight[~copied[0].sparsity.mask].any()
    assert float(model[0].sparsity.gain) > 0


def test_baking_under_an_attached_sparsifier_is_explained_and_can_be_left():
    model, sparsifier = prepared(cw.RigL(every=2, until=9))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    cw.bake(model)
    with pytest.raises(ValueError, match="the model was baked while this sparsifier followed"):
        train(model, optimizer)
    sparsifier.detach()
    train(model, optimizer)


def test_two_sparsifiers_of_layers_with_the_same_name_keep_their_own_steps():
    first_model, first = prepared()
    second_model, second = prepared()
    optimizer = torch.optim.SGD([*first_model.parameters(), *second_model.parameters()], lr=0.1)
    first.attach(optimizer)
    train(first_model, optimizer, 3)
    second.attach(optimizer)
    train(second_model, optimizer, 2)
    optimizer.load_state_dict(optimizer.state_dict())
    assert (first.steps_done, second.steps_done) == (5, 2)


def test_the_representation_says_how_far_it_is():
    model, sparsifier = prepared(cw.RigL(every=2, until=9))
    assert "2 layers, 0 steps done, not attached" in repr(sparsifier)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    train(model, optimizer)
    assert "1 steps done, attached to SGD" in repr(sparsifier)


@pytest.mark.parametrize("method", [cw.srste(), cw.RigL(every=1, until=9, estimate=True)])
def test_methods_without_dense_gradient_stand_unused_layers(method):
    model, sparsifier = prepared(method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    model[0](torch.randn(4, 16)).square().sum().backward()
    optimizer.step()
    assert sparsifier.steps_done == 1


@pytest.mark.parametrize("state", [{}, {"steps": 3}, {"steps_done": 3, "mask": 1}])
def test_a_state_of_something_else_is_refused(state):
    _, sparsifier = prepared()
    with pytest.raises(ValueError, match="this is no state of a sparsifier"):
        sparsifier.load_state_dict(state)


def test_tracking_must_be_alike_in_a_resumed_run():
    _, plain = prepared()
    _, tracked = prepared(track=True)
    with pytest.raises(ValueError, match="without track=True"):
        tracked.load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match="pass track=True"):
        _ = plain.exploration


def test_several_optimizers_count_one_step_together():
    model, sparsifier = prepared(cw.RigL(every=2, until=9), track=True)
    matrices = torch.optim.SGD([model[0].weight], lr=0.1, momentum=0.9)
    rest = torch.optim.AdamW([p for p in model.parameters() if p is not model[0].weight])
    sparsifier.attach(matrices, rest)
    for _ in range(4):
        model(torch.randn(4, 16)).square().sum().backward()
        matrices.step()
        rest.step()
        matrices.zero_grad()
        rest.zero_grad()
    assert sparsifier.steps_done == 4
    assert [len(seen.turnovers) for seen in sparsifier.exploration.values()] == [2, 2]


def test_the_step_rides_in_the_optimizers_state_dict():
    model, sparsifier = prepared()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    train(model, optimizer, 3)
    other_model, other = prepared()
    other_optimizer = torch.optim.SGD(other_model.parameters(), lr=0.1)
    other.attach(other_optimizer)
    other_optimizer.load_state_dict(optimizer.state_dict())
    assert other.steps_done == 3
    plain = torch.optim.SGD(model.parameters(), lr=0.1).state_dict()
    other_optimizer.load_state_dict(plain)
    assert other.steps_done == 3


@pytest.mark.parametrize("by_name", [True, False])
def test_a_closure_computes_the_gradient_inside_the_step(by_name):
    finals = []
    for closed in (True, False):
        model, sparsifier = prepared(cw.RigL(every=1, until=9))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        sparsifier.attach(optimizer)
        torch.manual_seed(1)

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = model(torch.randn(4, 16)).square().sum()
            loss.backward()
            return loss

        for _ in range(3):
            if not closed:
                closure()
                optimizer.step()
            elif by_name:
                optimizer.step(closure=closure)
            else:
                optimizer.step(closure)
        finals.append((model[0].sparsity.mask, model[0].weight))
    assert torch.equal(finals[0][0], finals[1][0])
    assert torch.equal(finals[0][1], finals[1][1])


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("method", [cw.RigL(every=1, until=9), cw.srste(decay=0.1), cw.Supermask(every=1)])
def test_the_step_survives_ways_of_saving_that_know_only_groups_of_parameters(method, flatten):
    """They also make the optimizer take a first step without effect, which neither counts nor moves a mask."""
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    model, sparsifier = prepared(method)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sparsifier.attach(optimizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    get_state_dict(model, optimizer, options=options)
    assert sparsifier.steps_done == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    train(model, optimizer, 3)
    model_state, optimizer_state = get_state_dict(model, optimizer, options=options)
    other_model, other = prepared(method)
    other_optimizer = torch.optim.AdamW(other_model.parameters(), lr=1e-2)
    other.attach(other_optimizer)
    set_state_dict(
        other_model, other_optimizer,
        model_state_dict=model_state, optim_state_dict=optimizer_state, options=options,
    )  # fmt: skip
    assert other.steps_done == 3
    assert all(torch.equal(value, other_model.state_dict()[name]) for name, value in model.state_dict().items())
    sparsifier.detach()
    assert "cutwork:0" not in optimizer.param_groups[0]
