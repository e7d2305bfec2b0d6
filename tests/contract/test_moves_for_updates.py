"""A move may stand in for the update of its step: then all that the optimizer trains and remembers waits."""

import copy

import pytest
import torch
from torch import nn

import cutwork as cw

pytestmark = pytest.mark.grid

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1),
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "one by one": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=False),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "adadelta": torch.optim.Adadelta,
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-3),
    "asgd": lambda p: torch.optim.ASGD(p, lr=1e-2),
}
METHODS = {
    "rigl": cw.RigL(every=3, until=9, replaces_update=True),
    "rigl by estimate": cw.RigL(every=3, until=9, estimate=True, replaces_update=True),
    "srigl": cw.SRigL(every=3, until=9, replaces_update=True),
    "dense in the end": cw.Switch(cw.RigL(every=3, until=8, replaces_update=True), dense_from=9),
}


def build(method: cw.Method, storage: str, optimizer: str):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 8)).double()
    sparsifier = cw.sparsify(model, "block:2", density=0.4, method=method, storage=storage)
    optimizers = OPTIMIZERS[optimizer](model.parameters())
    sparsifier.attach(optimizers)
    return model, sparsifier, optimizers


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(8, 12, generator=torch.Generator().manual_seed(step)).double()
    return (model(x) - 1).square().mean()


def remembered(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[tuple, torch.Tensor]:
    """Return all that an optimizer trains and remembers: of sparse layers as matrices."""
    found = {}
    for name, parameter in model.named_parameters():
        layer = model[int(name[0])]
        for key, value in {"itself": parameter, **optimizer.state.get(parameter, {})}.items():
            if isinstance(value, torch.Tensor) and parameter is getattr(layer, "trained", None) and value.dim():
                found[name, key] = layer.sparsity.matrix(value).clone()
            else:
                found[name, key] = torch.as_tensor(value).detach().clone()
    return found


def masks_of(sparsifier: cw.Sparsifier) -> dict[str, torch.Tensor]:
    return {name: layer.sparsity.mask_matrix().clone() for name, layer in sparsifier.layers.items()}


@pytest.mark.parametrize("how", ["plain", "closure", "scaled"])
@pytest.mark.parametrize("storage", ["dense", "compressed"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_only_the_move_changes_anything(optimizer_name, method, storage, how):
    model, sparsifier, optimizer = build(METHODS[method], storage, optimizer_name)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=how == "scaled")
    for step in range(10):
        before, masks = remembered(model, optimizer), masks_of(sparsifier)

        def closure(step=step):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            scaler.scale(loss).backward()
            return loss

        if how == "closure":
            optimizer.step(closure)
        else:
            closure()
            scaler.step(optimizer)
            scaler.update()
        assert sparsifier.steps_done == step + 1
        assert model[2].weight.grad is not None, "a gradient is there afterwards as ever"
        after = remembered(model, optimizer)
        if sparsifier.method.due(step + 1):
            check_moved(before, after, masks, masks_of(sparsifier))
        else:
            assert not any(
                torch.equal(after[name, "itself"], before[name, "itself"]) for name in ("0.bias", "2.weight")
            )


def check_moved(before, after, old, new) -> None:
    assert before.keys() == after.keys()
    for (name, key), value in after.items():
        expected = before[name, key]
        if name.endswith(("weight", "values")) and value.dim() == 2:
            grown = new[name[0]] & ~old[name[0]]
            # What optimizers begin with for a new weight is one number for all of them.
            begins = value[grown][:1].sum() if key != "itself" else 0
            expected = torch.where(old[name[0]] & new[name[0]], expected, torch.where(grown, begins, 0))
        assert torch.equal(value, expected), (name, key)


@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_it_ranks_the_weights_that_gave_the_gradient(storage):
    """An own derivation of the authors' step: mask, gradient and magnitude all of the same weights."""
    method = cw.RigL(every=3, until=9, fraction=cw.constant(0.5), replaces_update=True)
    model, _, optimizer = build(method, storage, "sgd")
    for step in range(3):
        twin = copy.deepcopy(model)
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
    cw.bake(twin)
    loss_of(twin, 2).backward()
    for name in ("0", "3"):
        weight, grad = (each.detach().abs() for each in (twin[int(name)].weight, twin[int(name)].weight.grad))
        tiles = [(i, j) for i in range(0, weight.shape[0], 2) for j in range(0, weight.shape[1], 2)]
        size, pull = ({(i, j): float(each[i : i + 2, j : j + 2].sum()) for i, j in tiles} for each in (weight, grad))
        kept = [tile for tile in tiles if size[tile] > 0]
        staying = sorted(kept, key=lambda tile: -size[tile])[: len(kept) - len(kept) // 2]
        grown = sorted((tile for tile in tiles if tile not in staying), key=lambda tile: -pull[tile])
        chosen = {*staying, *grown[: len(kept) // 2]}
        mask = model[int(name)].sparsity.mask
        assert {tile for tile in tiles if mask[tile]} == chosen


def test_an_optimizer_that_is_stepped_by_hand_cannot_be_kept_from_it():
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    sparsifier = cw.sparsify(model, "block:2", density=0.5, method=METHODS["rigl"])
    with pytest.raises(ValueError, match="which takes hooks; leave out hooks=False"):
        sparsifier.attach(torch.optim.SGD(model.parameters(), lr=0.1), hooks=False)


def test_a_run_resumes_before_and_after_such_a_step():
    whole = build(METHODS["rigl"], "dense", "adam")
    for step in range(9):
        train(*whole, step)
    for stop in (2, 3):
        first, second = (build(METHODS["rigl"], "dense", "adam") for _ in range(2))
        for step in range(stop):
            train(*first, step)
        second[0].load_state_dict(first[0].state_dict())
        second[2].load_state_dict(copy.deepcopy(first[2].state_dict()))
        for step in range(stop, 9):
            train(*second, step)
        for name, value in whole[0].state_dict().items():
            assert torch.equal(value, second[0].state_dict()[name]), name


def train(model, sparsifier, optimizer, step) -> None:
    optimizer.zero_grad()
    loss_of(model, step).backward()
    optimizer.step()
