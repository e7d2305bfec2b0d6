"""A run that stops anywhere and goes on in a new process ends, to the bit, where an uninterrupted one ends."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.methods import METHODS, Method, Switch

pytestmark = pytest.mark.grid

STEPS = 10


def quick(name: str) -> Method:
    """Return a method of this name that moves several times in a few steps."""
    if name == "switch":
        return Switch(METHODS["rigl"](every=2, until=9), sparse_from=3, dense_from=8)
    if name == "rigl by estimate":
        return cw.RigL(every=2, until=9, estimate=True)
    if name == "supermask, ever sparser":
        return cw.Supermask(every=2, start_density=0.9, until=9, weight_bits=3, score_range=(-1.0, 1.0))
    if name == "spartan":
        return cw.Spartan(every=2, thin_until=3, until=7)
    options: dict = {"every": 2, "until": 9} if name in {"gradual", "set", "rigl", "dsb", "granet", "srigl"} else {}
    return METHODS[name](**options, **({"thin_until": 5} if name == "granet" else {}))


METHOD_NAMES = [*METHODS, "switch", "rigl by estimate", "supermask, ever sparser"]
PATTERN_OF = {"dsb": "shuffled:4", "ssb": "shuffled:4", "supermask": "block:4", "gradual": "block:4"}


class Orthogonal(torch.optim.Optimizer):
    """A Muon-like optimizer of matrices, whose updates are nowhere zero."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.02})

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.mul_(0.9).add_(parameter.grad)
                u, _, v = torch.linalg.svd(momentum.flatten(1), full_matrices=False)
                parameter.sub_((u @ v).view_as(parameter), alpha=self.param_groups[0]["lr"])


class Run:
    """A model, its sparsifier and its optimizers, as a program builds them when it starts."""

    def __init__(self, method: str, optimizers=None, **options):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 16), nn.ReLU(),
            nn.Dropout(0.1), nn.Linear(16, 4),
        )  # fmt: skip
        pattern = PATTERN_OF.get(method, "unstructured")
        self.sparsifier = cw.sparsify(self.model, pattern, density=0.3, method=quick(method), track=True)
        self.optimizers = (optimizers or adamw)(self.model)
        self.sparsifier.attach(*self.optimizers, **options)

    def train(self, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            x, y = torch.randn(6, 2, 4, 4), torch.randint(0, 4, (6,))
            nn.functional.cross_entropy(self.model(x), y).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
            for optimizer in self.optimizers:
                optimizer.step()
            self.model.zero_grad()

    def saved(self, *, sparsifier_apart: bool) -> io.BytesIO:
        file = io.BytesIO()
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        if sparsifier_apart:
            for one in state["optimizers"]:
                del one["cutwork:0"]
            state["sparsifier"] = self.sparsifier.state_dict()
        torch.save(state, file)
        file.seek(0)
        return file

    def load(self, file: io.BytesIO) -> None:
        state = torch.load(file, weights_only=True)
        self.model.load_state_dict(state["model"], strict=True)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if "sparsifier" in state:
            self.sparsifier.load_state_dict(state["sparsifier"])


def adamw(model: nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.AdamW(model.parameters(), lr=1e-2)]


def orthogonal_and_adamw(model: nn.Module) -> list[torch.optim.Optimizer]:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    rest = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [Orthogonal(matrices), torch.optim.AdamW(rest, lr=1e-2)]


def rest_first(model: nn.Module) -> list[torch.optim.Optimizer]:
    return orthogonal_and_adamw(model)[::-1]


def check_equal(one: Run, other: Run) -> None:
    states = [
        leaves(run.model.state_dict(), [optimizer.state_dict() for optimizer in run.optimizers]) for run in (one, other)
    ]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def leaves(*states) -> dict[str, torch.Tensor]:
    """Return every tensor and number in nested dictionaries and lists under the path to it."""
    found: dict[str, torch.Tensor] = {}

    def walk(value, path: str) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in items:
            if isinstance(part, dict | list | tuple):
                walk(part, f"{path}/{key}")
            elif isinstance(part, torch.Tensor | int | float):
                found[f"{path}/{key}"] = torch.as_tensor(part)

    walk(states, "")
    return found


@pytest.mark.parametrize("sparsifier_apart", [False, True])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_stopping_at_any_step_changes_nothing(method, sparsifier_apart):
    """The step rides in the optimizer's state dict, or is saved apart; masks and scores are in the model's."""
    whole = Run(method)
    whole.train(range(STEPS))
    for stop in range(STEPS + 1):
        first = Run(method)
        first.train(range(stop))
        second = Run(method)
        second.load(first.saved(sparsifier_apart=sparsifier_apart))
        assert second.sparsifier.steps_done == stop
        second.train(range(stop, STEPS))
        check_equal(whole, second)
        for name, seen in whole.sparsifier.exploration.items():
            other = second.sparsifier.exploration[name]
            assert (seen.turnovers, seen.itop_rate, seen.always_rate, seen.overlap) == (
                other.turnovers, other.itop_rate, other.always_rate, other.overlap,
            )  # fmt: skip


@pytest.mark.parametrize("optimizers", [orthogonal_and_adamw, rest_first])
@pytest.mark.parametrize("method", ["rigl", "rigl by estimate", "srigl", "granet", "supermask", "srste"])
def test_several_optimizers_resume_together(method, optimizers):
    whole = Run(method, optimizers)
    whole.train(range(STEPS))
    assert any(seen.turnovers for seen in whole.sparsifier.exploration.values())
    for stop in (3, 4, 5):
        first = Run(method, optimizers)
        first.train(range(stop))
        second = Run(method, optimizers)
        second.load(first.saved(sparsifier_apart=False))
        second.train(range(stop, STEPS))
        check_equal(whole, second)


@pytest.mark.parametrize("method", ["rigl", "rigl by estimate", "granet", "supermask", "srste"])
def test_the_order_of_loading_does_not_matter(method):
    whole = Run(method)
    whole.train(range(STEPS))
    first = Run(method)
    first.train(range(5))
    state = torch.load(first.saved(sparsifier_apart=False), weights_only=True)
    second = Run(method)
    second.optimizers[0].load_state_dict(state["optimizers"][0])
    second.model.load_state_dict(state["model"])
    second.train(range(5, STEPS))
    check_equal(whole, second)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_copy_of_model_and_sparsifier_goes_on_like_the_original(method, copied):
    """A copy follows no optimizer until it is attached to one."""
    whole = Run(method)
    whole.train(range(5))
    twin = copied(whole)
    with pytest.raises(ValueError, match=r"call attach\(optimizer\) first"):
        twin.sparsifier.step()
    twin.sparsifier.attach(*twin.optimizers)
    assert twin.sparsifier.layers["4"] is twin.model[4]
    before = {name: value.clone() for name, value in twin.model.state_dict().items()}
    whole.train(range(5, STEPS))
    assert all(torch.equal(value, before[name]) for name, value in twin.model.state_dict().items())
    twin.train(range(5, STEPS))
    check_equal(whole, twin)


@pytest.mark.parametrize("method", ["rigl", "rigl by estimate", "srste", "supermask"])
def test_an_optimizer_that_asks_for_the_gradient_several_times_moves_masks_and_resumes(method):
    def lbfgs(model):
        return [torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3, history_size=4)]

    def train(run, steps):
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            x, y = torch.randn(6, 2, 4, 4, generator=generator), torch.randint(0, 4, (6,), generator=generator)

            def closure(x=x, y=y):
                run.model.zero_grad()
                loss = nn.functional.cross_entropy(run.model(x), y)
                loss.backward()
                return loss

            run.optimizers[0].step(closure)

    runs = [Run(method, lbfgs) for _ in range(3)]
    for run in runs:
        run.model.eval()
    whole, first, second = runs
    train(whole, range(8))
    assert whole.sparsifier.steps_done == 8
    moved = any(any(seen.turnovers) for seen in whole.sparsifier.exploration.values())
    assert moved or method == "supermask", "scores move too little here to overtake each other"
    for layer in whole.sparsifier.layers.values():
        assert method in {"srste", "supermask"} or not layer.weight[~layer.sparsity.mask].any()
    train(first, range(5))
    second.load(first.saved(sparsifier_apart=False))
    train(second, range(5, 8))
    check_equal(whole, second)


def test_a_state_of_the_optimizer_brings_the_step_also_when_it_is_loaded_before_attaching():
    first = Run("rigl")
    first.train(range(3))
    state = first.optimizers[0].state_dict()
    late = Run("rigl")
    late.sparsifier.detach()
    late.optimizers[0].load_state_dict(state)
    late.sparsifier.attach(*late.optimizers)
    assert late.sparsifier.steps_done == 3
    late.sparsifier.load_state_dict(state["cutwork:0"])
    assert late.sparsifier.steps_done == 3
