import pytest
import torch
from torch import nn

from cutwork.speed.profile import profile


class Machine:
    """A clock that moves when a layer runs, by as much as that is said to take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs = 0

    def clock(self) -> float:
        return self.now

    def takes(self, layer: nn.Module, seconds) -> nn.Module:
        def move(*_):
            self.now += seconds(self.runs) if callable(seconds) else seconds

        layer.register_forward_hook(move)
        return layer


def run_of(machine, model):
    def run():
        machine.runs += 1
        with torch.no_grad():
            model(torch.ones(1, 4))

    return run


def test_a_pass_falls_into_its_layers_and_the_rest():
    machine = Machine()
    one, two = machine.takes(nn.Linear(4, 4), 3.0), machine.takes(nn.Linear(4, 4), 5.0)
    model = nn.Sequential(one, machine.takes(nn.ReLU(), 1.0), two, one)
    before = [len(layer._forward_hooks) for layer in model]
    pieces = profile({"it": (run_of(machine, model), {"one": one, "two": two})}, seconds=1, clock=machine.clock)["it"]
    assert pieces.layers == {"one": 6.0, "two": 5.0}
    assert (pieces.outside_s, pieces.total_s, pieces.spread) == (1.0, 12.0, 0.0)
    assert [len(layer._forward_hooks) for layer in model] == before
    assert not one._forward_pre_hooks


def test_what_stops_every_run_somewhere_else_counts_nowhere():
    machine = Machine()
    # Each run is stopped for 50, in another of ten layers each time.
    layers = [
        machine.takes(nn.Linear(4, 4), lambda run, place=place: 1 + 50 * (run % 10 == place)) for place in range(10)
    ]
    model = nn.Sequential(*layers)
    named = {str(place): layer for place, layer in enumerate(layers)}
    pieces = profile({"it": (run_of(machine, model), named)}, seconds=1, min_rounds=10, clock=machine.clock)["it"]
    assert pieces.total_s == pytest.approx(10)


def test_the_time_of_the_cuts_is_left_out():
    machine = Machine()
    layer, slow = machine.takes(nn.Linear(4, 4), 1.0), 0.25

    def clock():
        # What a cut takes, only this clock shows.
        machine.now += slow
        return machine.now

    model = nn.Sequential(layer, machine.takes(nn.ReLU(), 2.0))
    pieces = profile({"it": (run_of(machine, model), {"0": layer})}, seconds=1, clock=clock)["it"]
    assert pieces.layers["0"] + pieces.outside_s == pytest.approx(3 + slow)


def test_a_layer_that_only_some_runs_call_counts_its_share():
    machine = Machine()
    layer = machine.takes(nn.Linear(4, 4), 8.0)

    class Sometimes(nn.Module):
        def forward(self, x):
            machine.now += 1
            return layer(x) if machine.runs % 4 == 1 else x

    pieces = profile(
        {"it": (run_of(machine, Sometimes()), {"a": layer})}, seconds=1, min_rounds=8, clock=machine.clock
    )["it"]
    assert pieces.layers["a"] == pytest.approx(2)


def test_passes_take_turns_and_each_runs_untimed_before():
    machine, log = Machine(), []
    passes = {name: (lambda name=name: log.append(name), {}) for name in "ab"}
    profile(passes, seconds=1, min_rounds=2, max_rounds=2, clock=machine.clock)
    assert "".join(log) == "ab" + 2 * "aaabbb"
