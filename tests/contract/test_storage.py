"""Both storages train the same: the same masks, and the same weights to float tolerance."""

import contextlib
import copy
import gc
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import cutwork as cw
from cutwork.layers.compressed import CompressedConv2d
from cutwork.methods import Method
from cutwork.sparsity import numbers
from cutwork.training import attachment

pytestmark = pytest.mark.grid

PATTERNS = ["block:4", "block:5x3", "vector:4", "shuffled:4", "block:4-taps"]
# Each moves several times in the steps of these tests.
METHODS: dict[str, Method] = {
    "static": cw.Static(),
    "gradual": cw.Gradual(every=2, until=7),
    "gradual by taylor": cw.Gradual(every=2, until=7, drop=cw.taylor),
    "set": cw.set_(every=2, until=8),
    "rigl": cw.RigL(every=2, until=8),
    "rigl by estimate": cw.RigL(every=2, until=8, estimate=True),
    "rigl by relative gradients": cw.RigL(every=2, until=8, grow=cw.relative_gradient),
    "granet": cw.GraNet(every=2, until=8, thin_until=5),
    "srigl": cw.SRigL(every=2, until=8),
    "switch": cw.Switch(cw.RigL(every=2, until=7), sparse_from=2, dense_from=7),
}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
}
STEPS = 9


def build(network: str = "linear") -> nn.Module:
    torch.manual_seed(0)
    if network == "linear":
        return nn.Sequential(nn.Linear(23, 32), nn.GELU(), nn.Linear(32, 17), nn.GELU(), nn.Linear(17, 6)).double()
    # One of each kind: padded, strided, in groups, dilated, pointwise.
    return nn.Sequential(
        *(nn.Linear(23, 3 * 6 * 5), nn.Unflatten(1, (3, 6, 5))),
        *(nn.Conv2d(3, 8, 3, padding=1), nn.GELU()),
        *(nn.Conv2d(8, 10, 3, stride=2, padding=1, padding_mode="reflect", groups=2), nn.GELU()),
        *(nn.Conv2d(10, 9, 2, dilation=(1, 2), padding="same", bias=False), nn.GELU()),
        *(nn.Conv2d(9, 7, 1), nn.Flatten(), nn.Linear(7 * 9, 6)),
    ).double()


def batch_of(step: int, size: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(size, 23, generator=generator).double(), torch.randint(0, 6, (size,), generator=generator)


def loss_of(model: nn.Module, step: int) -> Tensor:
    x, y = batch_of(step)
    return nn.functional.cross_entropy(model(x), y)


def prepared(storage: str, pattern: str, method: Method, optimizer_name: str, network: str = "linear"):
    model = build(network)
    sparsifier = cw.sparsify(model, pattern, density=0.3, method=method, storage=storage, track=True)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    sparsifier.attach(optimizer)
    return model, sparsifier, optimizer


def trained(
    storage: str,
    pattern: str,
    method: Method,
    optimizer_name: str = "adamw",
    steps: int = STEPS,
    network: str = "linear",
):
    model, sparsifier, optimizer = prepared(storage, pattern, method, optimizer_name, network)
    masks = []
    for step in range(steps):
        optimizer.zero_grad()
        # The loss, and with it the graph of the old size, lives on into the next step, as in everybody's loop.
        loss = loss_of(model, step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        masks.append({name: layer.sparsity.mask.clone() for name, layer in sparsifier.layers.items()})
    return model, sparsifier, optimizer, masks


def weight_of(layer: nn.Module) -> Tensor:
    return layer.sparsity.matrix(layer.trained)


def check_same_training(one, other) -> None:
    (model, sparsifier, optimizer, masks), (twin, twins_sparsifier, twins_optimizer, twins_masks) = one, other
    for step, (seen, expected) in enumerate(zip(masks, twins_masks, strict=True), 1):
        for name in expected:
            assert torch.equal(seen[name], expected[name]), f"{name} after step {step}"
    for name, layer in sparsifier.layers.items():
        twins_layer = twins_sparsifier.layers[name]
        torch.testing.assert_close(weight_of(layer), weight_of(twins_layer), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(layer.bias, twins_layer.bias, rtol=1e-6, atol=1e-9)
        state, expected = optimizer.state[layer.trained], twins_optimizer.state[twins_layer.trained]
        for key, value in state.items():
            if value.shape == layer.trained.shape:
                dense = twins_layer.sparsity.matrix(expected[key])
                torch.testing.assert_close(layer.sparsity.matrix(value), dense, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(loss_of(model, 99), loss_of(twin, 99), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method_name", METHODS)
def test_both_storages_give_the_same_training(method_name, pattern, optimizer_name):
    method = METHODS[method_name]
    compressed = trained("compressed", pattern, method, optimizer_name)
    dense = trained("dense", pattern, method, optimizer_name)
    check_same_training(compressed, dense)
    if method_name != "static":
        assert any(sum(seen.turnovers) for seen in dense[1].exploration.values()) or method_name == "switch"
    sizes = {tuple(len(mask.nonzero()) for mask in masks.values()) for masks in compressed[3]}
    assert len(sizes) > 1 or method_name not in {"gradual", "granet", "switch"}


def test_rows_that_change_groups_take_weights_and_state_along():
    compressed = trained("compressed", "shuffled:4x1", cw.RigL(every=2, until=8), steps=2)
    dense = trained("dense", "shuffled:4x1", cw.RigL(every=2, until=8), steps=2)
    _, sparsifier, _, masks = compressed
    before = cw.sparsify(build(), "shuffled:4x1", density=0.3).layers
    changed = {
        name: not torch.equal(_partners(mask), _partners(before[name].sparsity.mask))
        for name, mask in masks[-1].items()
    }
    assert any(changed.values())
    kept = {name: (masks[-1][name] & before[name].sparsity.mask).sum() for name in changed}
    for name, layer in sparsifier.layers.items():
        assert int(weight_of(layer).count_nonzero()) == kept[name] > 0
    check_same_training(compressed, dense)


def _partners(mask: Tensor) -> Tensor:
    """Return which rows of a mask are identical."""
    return (mask[:, None] == mask[None]).all(2)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("pattern", PATTERNS)
# Inputs that are alike for all samples have equal relative gradients, of which rounding then chooses.
@pytest.mark.parametrize("method_name", [name for name in METHODS if name != "rigl by relative gradients"])
def test_both_storages_give_the_same_training_of_convolutions(method_name, pattern):
    compressed, dense = (
        trained(storage, pattern, METHODS[method_name], network="convolution") for storage in ("compressed", "dense")
    )
    check_same_training(compressed, dense)
    assert any(isinstance(layer, CompressedConv2d) for layer in compressed[1].layers.values())


@pytest.mark.parametrize(
    "how", ["micro-batches", "closure", "hooks=False", "scaled loss", "zeros instead of None", "recomputed"]
)
@pytest.mark.parametrize("method_name", ["rigl", "rigl by estimate", "gradual"])
def test_both_storages_agree_however_the_step_is_made(method_name, how):
    results = []
    for storage in ("compressed", "dense"):
        model = build()
        sparsifier = cw.sparsify(
            model, "block:4", density=0.3, method=METHODS[method_name], storage=storage, track=True
        )
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        sparsifier.attach(optimizer, hooks=how != "hooks=False")
        masks = []
        for step in range(STEPS):
            train_step(model, sparsifier, optimizer, step, how)
            masks.append({name: layer.sparsity.mask.clone() for name, layer in sparsifier.layers.items()})
        results.append((model, sparsifier, optimizer, masks))
    check_same_training(*results)


def train_step(model, sparsifier, optimizer, step: int, how: str) -> None:
    x, y = batch_of(step)
    if how == "micro-batches":
        buffer = torch.empty_like(x[:4])
        for part_x, part_y in zip(x.chunk(3), y.chunk(3), strict=True):
            (nn.functional.cross_entropy(model(buffer.copy_(part_x)), part_y) / 3).backward()
        optimizer.step()
        optimizer.zero_grad()
    elif how == "closure":

        def closure():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        # Thrown away: only what the last call of the closure left counts.
        closure()
        optimizer.step(closure)
    elif how == "hooks=False":
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        sparsifier.step()
        optimizer.zero_grad()
    elif how == "scaled loss":
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
        if step in (2, 3):
            # A step that the scaler skips, right where the masks would move.
            scaler.scale(nn.functional.cross_entropy(model(x * float("inf")), y)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    elif how == "recomputed":
        optimizer.zero_grad()
        hidden = checkpoint(model[:3], x.requires_grad_(), use_reentrant=step % 3 == 0)
        nn.functional.cross_entropy(checkpoint(model[3:], hidden, use_reentrant=False), y).backward()
        optimizer.step()
    else:
        # Neither of these reaches the gradient that the update sees.
        nn.functional.cross_entropy(model(x.flip(1)), y).backward()
        optimizer.zero_grad(set_to_none=False)
        torch.autograd.grad(nn.functional.cross_entropy(model(x.flip(0)), y), list(model.parameters()))
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("method_name", ["rigl", "rigl by estimate", "granet", "static"])
def test_nothing_of_dense_size_is_alive_between_moves(method_name):
    # No other test has a weight of this size.
    outputs, inputs = 163, 211
    model = nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, 8))
    sparsifier = cw.sparsify(model, "block:8", density=0.1, method=METHODS[method_name], storage="compressed")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sparsifier.attach(optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        model(torch.randn(4, inputs)).square().sum().backward()
        optimizer.step()
        # Once right after a move, as it takes a while to look at all there is.
        if step == 3:
            gc.collect()
            alive = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
            assert not [thing for thing in alive if sorted(thing.shape) == [outputs, inputs]]
        assert max(tensor.numel() for tensor in tensors_of(model, optimizer)) < 0.6 * outputs * inputs
        # What was heard in a step is forgotten after it.
        assert not any(layer.sparsity.ear.pairs for layer in sparsifier.layers.values())


class Largest(TorchDispatchMode):
    """Remembers the size in bytes of the largest tensor that is made."""

    num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor):
                self.num_bytes = max(self.num_bytes, made.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("pattern", ["block:8", "vector:8"])
@pytest.mark.parametrize(
    "method_name", ["rigl", "rigl by estimate", "set", "gradual", "gradual by taylor", "granet", "srigl"]
)
def test_a_move_makes_nothing_of_dense_size(method_name, pattern, monkeypatch):
    monkeypatch.setattr(numbers, "NUMBERS_AT_ONCE", 2**13)
    outputs, inputs = 512, 384
    model = nn.Linear(inputs, outputs)
    method = METHODS[method_name]
    sparsifier = cw.sparsify(model, pattern, density=0.1, method=method, init="random", storage="compressed")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    sparsifier.attach(optimizer)
    before, seen = sparsifier.layers[""].sparsity.mask, Largest()
    # The first move of those that begin with more than they end with comes when most of it is gone.
    for step in range(6):
        optimizer.zero_grad()
        model(torch.randn(4, inputs)).square().sum().backward()
        with seen if step == 5 else contextlib.nullcontext():
            optimizer.step()
    assert not torch.equal(sparsifier.layers[""].sparsity.mask, before)
    assert 0 < seen.num_bytes < outputs * inputs * 4 / 3


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for tensor in (*model.parameters(), *model.buffers()):
        yield tensor
        if tensor.grad is not None:
            yield tensor.grad
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


@pytest.mark.parametrize("pattern", ["block:16", "vector:16"])
def test_the_memory_of_training_has_the_size_of_what_is_kept(pattern):
    model = nn.Linear(3072, 768, bias=False)
    sparsifier = cw.sparsify(model, pattern, density=0.1, storage="compressed")
    optimizer = torch.optim.AdamW(model.parameters())
    sparsifier.attach(optimizer)
    model(torch.randn(2, 3072)).sum().backward()
    optimizer.step()
    stored = sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(model, optimizer))
    assert stored <= 0.13 * 4 * 3072 * 768 * 4


@pytest.mark.parametrize("method_name", ["rigl", "rigl by estimate", "gradual", "granet"])
@pytest.mark.parametrize("pattern", ["block:4", "block:5x3", "shuffled:4"])
@pytest.mark.parametrize("stop", [3, 4, 5, 6])
def test_a_run_that_stopped_anywhere_around_a_move_resumes_to_the_bit(tmp_path, method_name, pattern, stop):
    method = METHODS[method_name]
    whole_run = trained("compressed", pattern, method)
    model, sparsifier, optimizer, _ = trained("compressed", pattern, method, steps=stop)
    cw.save(model, tmp_path / "run.safetensors", sparsifier=sparsifier, optimizer=optimizer)
    # The first mask is another one, and keeps another number of units.
    model, sparsifier, optimizer = prepared("compressed", pattern, method, "adamw")
    cw.load(tmp_path / "run.safetensors", model, sparsifier=sparsifier, optimizer=optimizer)
    for step in range(stop, STEPS):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    for key, value in whole_run[0].state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    for name, layer in sparsifier.layers.items():
        states = [run.state[run_layer.trained] for run, run_layer in
                  ((optimizer, layer), (whole_run[2], whole_run[1].layers[name]))]  # fmt: skip
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])


def check_refused(model, sparsifier, optimizer, message: str, steps: int = 3) -> None:
    """Check that a move is refused by the name of the layer, and that no mask, weight or state has changed by it."""
    with pytest.raises(ValueError, match=message):
        for step in range(steps):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            before = [layer.sparsity.mask.clone() for layer in sparsifier.layers.values()]
            optimizer.step()
    for mask, layer in zip(before, sparsifier.layers.values(), strict=True):
        assert torch.equal(layer.sparsity.mask, mask)
        assert layer.trained.shape[0] == layer.sparsity.topology.num_units


def test_an_optimizer_whose_state_cannot_change_its_size_is_refused():
    model = build()
    sparsifier = cw.sparsify(model, "block:4", density=0.3, method=METHODS["gradual"], storage="compressed")
    optimizer = torch.optim.Adafactor(model.parameters(), lr=1e-2)
    sparsifier.attach(optimizer)
    check_refused(
        model,
        sparsifier,
        optimizer,
        "0: its mask moves, and with it which weights its values are, but Adafactor keeps a state",
    )


def test_an_optimizer_that_remembers_all_parameters_in_one_vector_is_refused_when_a_mask_moves():
    model = build()
    sparsifier = cw.sparsify(model, "block:4", density=0.3, method=METHODS["set"], storage="compressed")
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    sparsifier.attach(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    with pytest.raises(
        ValueError, match="0: its mask moves, and with it which weights its values are, but LBFGS keeps"
    ):
        for _ in range(4):
            optimizer.step(closure)


def test_a_gradient_of_which_nothing_was_seen_moves_no_mask():
    model = build()
    sparsifier = cw.sparsify(model, "block:4", density=0.3, method=cw.RigL(every=1, until=9), storage="compressed")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    loss_of(model, 0).backward()
    for layer in sparsifier.layers.values():
        layer.sparsity.ear.pairs.clear()
    with pytest.raises(ValueError, match="0: none of the products by which its values got their gradient was seen"):
        optimizer.step()


def test_a_cast_between_sparsify_and_attach_leaves_the_moves_as_they_are():
    masks = []
    for cast in (False, True):
        model = build().float()
        sparsifier = cw.sparsify(model, "block:4", density=0.3, method=cw.RigL(every=1, until=9), storage="compressed")
        if cast:
            model.double().float()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparsifier.attach(optimizer)
        for step in range(3):
            optimizer.zero_grad()
            x, y = batch_of(step)
            nn.functional.cross_entropy(model(x.float()), y).backward()
            optimizer.step()
        masks.append(model[0].sparsity.mask)
    assert torch.equal(*masks)


def test_values_of_another_size_beside_an_optimizer_that_remembers_are_refused_until_it_is_loaded_too():
    model, _, optimizer = prepared("compressed", "block:4", METHODS["rigl"], "adamw")
    other = build()
    twin = cw.sparsify(other, "block:4", density=0.6, method=METHODS["rigl"], storage="compressed", track=True)
    others_optimizer = OPTIMIZERS["adamw"](other.parameters())
    twin.attach(others_optimizer)

    def train(model, optimizer):
        optimizer.zero_grad()
        loss_of(model, 0).backward()
        optimizer.step()

    train(model, optimizer)
    train(other, others_optimizer)
    model.load_state_dict(other.state_dict())
    with pytest.raises(
        ValueError, match=r"^0: a state dict has brought another number of units, .* but AdamW remembers"
    ):
        train(model, optimizer)
    optimizer.load_state_dict(copy.deepcopy(others_optimizer.state_dict()))
    train(model, optimizer)
    train(other, others_optimizer)
    assert torch.equal(model[0].values, other[0].values)


def test_several_processes_cannot_change_the_size_of_a_parameter(monkeypatch):
    model, sparsifier, optimizer = prepared("compressed", "block:4", METHODS["gradual"], "adamw")
    monkeypatch.setattr(attachment, "is_distributed", lambda: True)
    check_refused(model, sparsifier, optimizer, "0: .* which DistributedDataParallel cannot follow; use a method that")


@pytest.mark.parametrize("method_name", ["gradual", "srigl", "switch", "rigl"])
def test_a_process_alone_in_its_group_cannot_either(method_name, tmp_path):
    model = build()
    sparsifier = cw.sparsify(model, "block:4", density=0.3, method=METHODS[method_name], storage="compressed")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.AdamW(model.parameters())

        def train():
            sparsifier.attach(optimizer)
            for step in range(STEPS):
                optimizer.zero_grad()
                loss_of(wrapped, step).backward()
                optimizer.step()

        if method_name == "rigl":
            train()
        else:
            with pytest.raises(ValueError, match=r"0.*DistributedDataParallel cannot follow"):
                train()
    finally:
        torch.distributed.destroy_process_group()


def test_a_gradient_that_is_not_finite_moves_nothing():
    model, sparsifier, optimizer = prepared("compressed", "block:4", METHODS["rigl"], "sgd")
    layer = model[2]
    layer.register_full_backward_pre_hook(lambda layer, grads: (grads[0] * float("inf"),))
    check_refused(model, sparsifier, optimizer, "the gradient of step 2 is not finite, so the mask cannot move")


@dataclass(frozen=True)
class Scatters(cw.RigL):
    """Returns a mask that is none of its pattern."""

    def move(self, view: cw.View) -> Tensor:
        return torch.rand(view.weight.shape, generator=view.generator) < 0.3


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("block:4", "0: the method returned a mask that cuts the units of block:4"),
        ("shuffled:4", "0: the mask is not legal for shuffled:4, so its units cannot be stored alone; use dense"),
    ],
)
def test_a_mask_that_is_not_made_of_units_is_refused(pattern, message):
    check_refused(*prepared("compressed", pattern, Scatters(every=2, until=8), "adamw"), message)
