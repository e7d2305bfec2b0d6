import math
import pickle

import pytest

from cutwork.methods.schedules import constant, cosine, cubic, exponential, linear, power


@pytest.mark.parametrize(
    ("schedule", "halfway"),
    [
        (constant(0.3), 0.3),
        (linear(1.0, 0.5), 0.75),
        (cosine(0.3), 0.15),
        (cubic(1.0, 0.1), 0.1 + 0.9 / 8),
        (power(0.3, rate=2), 0.075),
        (exponential(0.3, rate=3), 0.3 * math.exp(-1.5)),
    ],
)
def test_each_schedule_starts_at_its_start_and_passes_its_middle(schedule, halfway):
    assert schedule(0) == pytest.approx(schedule.start)
    assert schedule(0.5) == pytest.approx(halfway)
    assert schedule(-1) == schedule(0)
    assert schedule(2) == schedule(1)


@pytest.mark.parametrize("schedule", [linear(1.0, 0.5), cosine(0.3, 0.1), cubic(1.0, 0.1), power(1.0, 0.2, rate=2)])
def test_each_schedule_arrives(schedule):
    assert schedule(1) == pytest.approx(schedule.end)


@pytest.mark.parametrize("step", range(0, 100, 7))
def test_cosine_is_bitwise_the_published_annealing(step):
    assert cosine(0.3)(step / 100) == 0.3 / 2 * (1 + math.cos(math.pi * (step / 100)))


def test_schedules_compare_and_pickle():
    assert pickle.loads(pickle.dumps(cosine(0.3))) == cosine(0.3) != cosine(0.2)
