from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutwork.speed.timing import Timing, measure, order_of_turns


class FakeMachine:
    """A clock that only moves when a form runs, by as much as that run is said to take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def form(self, name, durations):
        """Return a form whose runs take these durations, the last one again and again."""
        left = list(durations)

        def run():
            self.log.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run

    def clock(self) -> float:
        return self.now


def test_it_returns_the_median_of_the_rounds():
    machine = FakeMachine()
    # Three runs to learn how long one takes, then an untimed and a timed one in each round.
    slow = machine.form("slow", [1, 1, 1, *(9, 1), *(9, 2), *(9, 30), *(9, 4), *(9, 3)])
    timings = measure({"slow": slow}, seconds=1e-9, min_rounds=5, clock=machine.clock)
    assert timings == {"slow": Timing(median_s=3, spread=pytest.approx(2 / 3), rounds=5)}
    assert not timings["slow"].is_steady


def test_a_fast_form_runs_often_enough_for_the_clock():
    machine = FakeMachine()
    timings = measure(
        {"fast": machine.form("fast", [1e-6])}, seconds=1e-9, min_rounds=1, least_s=1e-3, clock=machine.clock
    )
    assert timings["fast"].median_s == pytest.approx(1e-6)
    assert len(machine.log) > 1000


def test_a_clock_that_stands_still_for_short_runs_is_waited_for():
    machine = FakeMachine()
    coarse = lambda: machine.now // 1e-3 * 1e-3  # noqa: E731
    timings = measure({"fast": machine.form("fast", [1e-6])}, seconds=1e-9, least_s=1e-2, clock=coarse)
    assert timings["fast"].median_s == pytest.approx(1e-6, rel=0.1)


def test_every_form_runs_untimed_before_it_is_timed():
    machine = FakeMachine()
    # Every second run, which follows another form, is slow; none of these may count.
    forms = {name: machine.form(name, [5, 5, 1, *[5, 1] * 50]) for name in "ab"}
    timings = measure(forms, seconds=1e-9, min_rounds=7, clock=machine.clock)
    assert [timing.median_s for timing in timings.values()] == [1, 1]


def test_forms_take_turns_and_another_one_begins_each_round():
    machine = FakeMachine()
    measure({name: machine.form(name, [1]) for name in "abc"}, seconds=1e-9, min_rounds=3, clock=machine.clock)
    assert "".join(machine.log[9:]) == "aabbcc" + "bbccaa" + "ccaabb"


def test_all_forms_get_about_the_same_time_and_slow_ones_at_least_the_fewest_rounds():
    machine = FakeMachine()
    forms = {"fast": machine.form("fast", [1]), "slow": machine.form("slow", [10]), "slug": machine.form("slug", [1e3])}
    timings = measure(forms, seconds=600, min_rounds=4, max_rounds=1000, clock=machine.clock)
    assert {name: timing.rounds for name, timing in timings.items()} == {"fast": 100, "slow": 10, "slug": 4}


@given(st.dictionaries(st.text(max_size=2), st.integers(1, 40), min_size=1, max_size=6))
def test_everyone_gets_all_turns_spread_evenly(rounds):
    turns = order_of_turns(rounds)
    assert {name: turns.count(name) for name in rounds} == rounds
    most = max(rounds, key=lambda name: rounds[name])
    for name, count in rounds.items():
        # Between two turns of one the busiest has its fair number, one more or less, and one for the rotation.
        places = [place for place, turn in enumerate(turns) if turn == name]
        between = [turns[start:end].count(most) for start, end in pairwise(places)]
        assert all(abs(number - rounds[most] / count) <= 2 for number in between)


def test_nothing_to_measure_is_nothing_measured():
    assert measure({}) == {}


@pytest.mark.parametrize("options", [{"seconds": 0}, {"min_rounds": 0}])
def test_no_time_or_no_rounds_is_an_error(options):
    with pytest.raises(ValueError, match="give some time, and at least one round"):
        measure({"a": lambda: None}, **options)


def test_with_strict_a_slow_form_runs_as_often_as_its_share_allows_and_at_least_once():
    machine = FakeMachine()
    forms = {"fast": machine.form("fast", [1]), "slow": machine.form("slow", [10]), "slug": machine.form("slug", [1e3])}
    timings = measure(forms, seconds=300, min_rounds=5, max_rounds=1000, strict=True, clock=machine.clock)
    assert {name: timing.rounds for name, timing in timings.items()} == {"fast": 48, "slow": 3, "slug": 1}
    assert [timing.median_s for timing in timings.values()] == [1, 10, 1e3]
    assert machine.log.count("slug") == 1


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=6), st.integers(1, 10**6))
def test_with_strict_nobody_takes_more_than_its_share_but_for_one_run(durations, seconds):
    machine = FakeMachine()
    forms = {str(number): machine.form(str(number), [duration]) for number, duration in enumerate(durations)}
    timings = measure(forms, seconds=seconds, least_s=1, strict=True, clock=machine.clock)
    share = seconds / len(forms)
    for (name, timing), duration in zip(timings.items(), durations, strict=True):
        assert timing.rounds >= 1
        assert machine.log.count(name) * duration <= max(share, duration)


def test_whoever_is_interrupted_has_what_was_measured_until_then():
    machine = FakeMachine()
    count = []

    def interrupted():
        count.append(1)
        machine.now += 1
        if len(count) == 12:
            raise KeyboardInterrupt

    times = {}
    with pytest.raises(KeyboardInterrupt):
        measure({"a": interrupted, "b": machine.form("b", [2])}, seconds=100, clock=machine.clock, times=times)
    assert times == {"a": [1] * 4, "b": [2]}
