"""A weight that begins in a move has no direction yet, and its steps are no longer than those of its neighbours."""

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.sparsity.birth import find_sizes, usual_size
from cutwork.training import sparsifier as sparsifier_module

LEARNING_RATE = 1e-2
MOVE = 200


class Signed(torch.optim.Optimizer):
    """A Lion-like optimizer: it follows the sign of a momentum, and remembers no size."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 0.1)
                parameter.sub_(momentum.sign(), alpha=group["lr"])


# With what of their state measures sizes.
OPTIMIZERS = {
    "adam": (torch.optim.Adam, {}, {"exp_avg_sq"}),
    "adamw": (torch.optim.AdamW, {}, {"exp_avg_sq"}),
    "amsgrad": (torch.optim.AdamW, {"amsgrad": True}, {"exp_avg_sq", "max_exp_avg_sq"}),
    "nadam": (torch.optim.NAdam, {}, {"exp_avg_sq"}),
    "radam": (torch.optim.RAdam, {}, {"exp_avg_sq"}),
    "adamax": (torch.optim.Adamax, {}, {"exp_inf"}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}, {"square_avg"}),
    "adagrad": (torch.optim.Adagrad, {"initial_accumulator_value": 0.1}, {"sum"}),
    "adadelta": (torch.optim.Adadelta, {}, {"square_avg", "acc_delta"}),
    "rprop": (torch.optim.Rprop, {}, {"step_size"}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9}, set()),
    "lion-like": (Signed, {}, set()),
}


def start(optimizer_name, *, storage="dense", every=MOVE, pattern="block:4", grow=cw.random, dtype=torch.float32):
    """Return a layer of odd sizes with a dense one beside it, both followed by an optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 50), nn.ReLU(), nn.Linear(50, 10)).to(dtype)
    method = cw.RigL(every=every, until=2 * every, grow=grow)
    sparsifier = cw.sparsify(model, {"0": pattern, "2": "dense"}, density=0.3, method=method, storage=storage)
    make, options, _ = OPTIMIZERS[optimizer_name]
    optimizer = make(model.parameters(), lr=LEARNING_RATE, **options)
    return model, sparsifier, optimizer


def batch_of(step, dtype=torch.float32):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 30, generator=generator).to(dtype), torch.randint(0, 10, (16,), generator=generator)


def update(model, optimizer, step, dtype=torch.float32):
    x, y = batch_of(step, dtype)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def is_per_weight(value, weight):
    return isinstance(value, torch.Tensor) and value.shape == weight.shape


@pytest.mark.parametrize("storage", ["dense", "compressed"])
@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_what_measures_sizes_begins_at_their_mean_and_all_else_at_zero(optimizer_name, storage):
    model, sparsifier, optimizer = start(optimizer_name, storage=storage, every=3)
    layer, before = model[0], {}

    def look(*_):
        state = optimizer.state[layer.trained]
        before["mask"] = layer.sparsity.mask_matrix().clone()
        before["state"] = {
            name: layer.sparsity.matrix(value).clone()
            for name, value in state.items() if is_per_weight(value, layer.trained)
        }  # fmt: skip

    optimizer.register_step_post_hook(look)
    sparsifier.attach(optimizer)
    for step in range(3):
        update(model, optimizer, step)
    mask = layer.sparsity.mask_matrix()
    begun, stayed = mask & ~before["mask"], mask & before["mask"]
    assert begun.any() and before["state"]
    assert not layer.sparsity.matrix(layer.trained)[begun].any()
    for name, old in before["state"].items():
        now = layer.sparsity.matrix(optimizer.state[layer.trained][name])
        expected = old[before["mask"]].mean() if name in OPTIMIZERS[optimizer_name][2] else torch.zeros(())
        torch.testing.assert_close(now[begun], expected.expand(int(begun.sum())))
        assert torch.equal(now[stayed], old[stayed])
        assert not now[~mask].any()


def longest_steps(optimizer_name, storage):
    """Return how far a new and an old weight get in one update, at most, with gradients of one size."""
    model, sparsifier, optimizer = start(optimizer_name, storage=storage)
    layer = model[0]
    sparsifier.attach(optimizer)
    # One half of the outputs is pulled up, the other down.
    x, pull = torch.ones(1, 30), torch.tensor([0.5, -0.5]).repeat(25)
    longest = {"new": 0.0, "old": 0.0}
    for step in range(MOVE + 100):
        old, mask = layer.sparsity.matrix(layer.trained).clone(), layer.sparsity.mask_matrix().clone()
        optimizer.zero_grad()
        (layer(x) * pull).sum().backward()
        model[2].weight.grad, model[2].bias.grad = torch.ones(10, 50), torch.ones(10)
        optimizer.step()
        if step + 1 == MOVE:
            begun = layer.sparsity.mask_matrix() & ~mask
            assert begun.any()
        elif step + 1 > MOVE:
            length = (layer.sparsity.matrix(layer.trained) - old).abs()
            longest["new"] = max(longest["new"], float(length[begun].max()))
            longest["old"] = max(longest["old"], float(length[mask & ~begun].max()))
    return longest


@pytest.mark.parametrize("storage", ["dense", "compressed"])
@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_with_like_gradients_a_new_weight_steps_no_further_than_an_old_one(optimizer_name, storage):
    longest = longest_steps(optimizer_name, storage)
    # Decay shortens the steps of weights that have moved far.
    assert longest["new"] <= 1.02 * longest["old"]


# Adam's would be 6.6 after a thousand updates: until then its correction for a young mean square is still at work.
@pytest.mark.parametrize(
    "optimizer_name, times", [("adam", 2.8), ("adamw", 2.8), ("amsgrad", 2.8), ("nadam", 2.8), ("adagrad", 10)]
)
def test_with_nothing_remembered_it_would_step_many_times_as_far(optimizer_name, times, monkeypatch):
    monkeypatch.setattr(sparsifier_module, "find_sizes", lambda remembered: frozenset())
    longest = longest_steps(optimizer_name, "dense")
    assert longest["new"] > times * longest["old"]


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_both_storages_begin_alike(optimizer_name):
    ends = []
    for storage in ("dense", "compressed"):
        model, sparsifier, optimizer = start(
            optimizer_name, storage=storage, every=3, pattern="block:4x3", grow=cw.gradient, dtype=torch.float64
        )
        sparsifier.attach(optimizer)
        for step in range(8):
            update(model, optimizer, step, torch.float64)
        sparsity = model[0].sparsity
        state = optimizer.state[model[0].trained]
        named = {name: value for name, value in state.items() if is_per_weight(value, model[0].trained)}
        tensors = {"weight": model[0].trained, **named}
        ends.append({name: sparsity.matrix(value) * sparsity.mask_matrix() for name, value in tensors.items()})
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("optimizer_name", ["sgd", "lion-like"])
def test_without_sizes_a_run_is_the_same_to_the_bit(optimizer_name, monkeypatch):
    def run():
        model, sparsifier, optimizer = start(optimizer_name, every=3)
        sparsifier.attach(optimizer)
        for step in range(8):
            update(model, optimizer, step)
        return model[0].weight.detach()

    weight = run()
    monkeypatch.setattr(sparsifier_module, "find_sizes", lambda remembered: frozenset())
    assert torch.equal(run(), weight)


@pytest.mark.parametrize("storage", ["dense", "compressed"])
@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_a_run_that_stopped_at_a_move_resumes_to_the_bit(optimizer_name, storage, tmp_path):
    def run(steps):
        model, sparsifier, optimizer = start(optimizer_name, storage=storage, every=3, grow=cw.gradient)
        sparsifier.attach(optimizer)
        for step in steps:
            update(model, optimizer, step)
        return model, sparsifier, optimizer

    whole, _, _ = run(range(8))
    for stop in (2, 3, 4):
        model, sparsifier, optimizer = run(range(stop))
        cw.save(model, tmp_path / "run.safetensors", sparsifier=sparsifier, optimizer=optimizer)
        model, sparsifier, optimizer = run(range(0))
        cw.load(tmp_path / "run.safetensors", model, sparsifier=sparsifier, optimizer=optimizer)
        for step in range(stop, 8):
            update(model, optimizer, step)
        for name, value in whole.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), (stop, name)


def test_where_dense_training_begins_all_new_weights_begin_with_the_usual_sizes():
    model, _, _ = start("adamw")
    cw.bake(model)
    method = cw.Switch(cw.Static(), dense_from=3)
    sparsifier = cw.sparsify(model, {"0": "unstructured", "2": "dense"}, density=0.3, method=method)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    sparsifier.attach(optimizer)
    old = model[0].sparsity.mask.clone()
    for step in range(3):
        update(model, optimizer, step)
    state = optimizer.state[model[0].weight]["exp_avg_sq"]
    assert model[0].sparsity.mask.all()
    torch.testing.assert_close(state[~old], state[old].mean().expand(int((~old).sum())))


def test_a_momentum_that_is_positive_throughout_one_layer_is_no_size():
    one, other = torch.zeros(2), torch.zeros(3)
    states = [{"m": torch.ones(2), "v": torch.ones(2)}, {"m": torch.tensor([1.0, -1.0, 1.0]), "v": torch.ones(3)}]
    assert find_sizes(zip((one, other), states, strict=True)) == {"v"}
    assert find_sizes(zip((other, one), states[::-1], strict=True)) == {"v"}


def test_only_real_numbers_of_which_there_is_one_for_each_weight_measure_sizes():
    weight = torch.zeros(2, 2)
    state = {
        "step": torch.tensor(3.0),
        "rows": torch.ones(2, 1),
        "codes": torch.ones(2, 2, dtype=torch.uint8),
        "complex": torch.ones(2, 2, dtype=torch.complex64),
        "words": "some",
        "half": torch.ones(2, 2, dtype=torch.bfloat16),
    }
    # Some keep settings beside the states of parameters.
    assert find_sizes([(weight, state), ("settings", 3), (weight, {})]) == {"half"}


def test_the_usual_size_is_that_of_what_is_kept():
    numbers, kept = torch.tensor([[1.0, 3.0], [50.0, 80.0]]), torch.tensor([[True, True], [False, False]])
    assert usual_size(numbers, kept) == 2
    assert usual_size(numbers.bfloat16(), kept) == 2
    assert usual_size(numbers, None) == 33.5
    assert usual_size(numbers, torch.zeros_like(kept)) == 0
    assert usual_size(numbers[:0], None) == 0


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_where_there_is_no_mean_new_weights_begin_at_zero(bad):
    assert usual_size(torch.tensor([1.0, bad]), None) == 0


def test_the_usual_size_does_not_depend_on_how_numbers_lie_in_memory():
    numbers = torch.rand(7, 5, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kept = numbers > 0.4
    other = numbers.to(memory_format=torch.channels_last)
    assert usual_size(other, kept) == usual_size(numbers, kept)


def test_in_half_precision_many_numbers_have_a_mean():
    assert usual_size(torch.full((300, 300), 2.0, dtype=torch.float16), None) == 2
