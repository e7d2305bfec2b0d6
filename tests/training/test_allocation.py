import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutwork.training.allocation import ALLOCATIONS, er, erk, erk_plus, uniform, uniform_plus

# Wide residual network 22-2 for ten classes, by the names of its stages: the densities it is known to get at 0.1.
WRN_22_2 = {
    "stem": ((16, 3, 3, 3), 1.0),
    "stage1.first": ((32, 16, 3, 3), 0.4211),
    **{f"stage1.{i}": ((32, 32, 3, 3), 0.2729) for i in range(5)},
    "stage1.shortcut": ((32, 16, 1, 1), 1.0),
    "stage2.first": ((64, 32, 3, 3), 0.1989),
    **{f"stage2.{i}": ((64, 64, 3, 3), 0.1306) for i in range(5)},
    "stage2.shortcut": ((64, 32, 1, 1), 1.0),
    "stage3.first": ((128, 64, 3, 3), 0.0965),
    **{f"stage3.{i}": ((128, 128, 3, 3), 0.0638) for i in range(5)},
    "stage3.shortcut": ((128, 64, 1, 1), 0.851),
    "fc": ((10, 128), 1.0),
}
SHAPES = {name: shape for name, (shape, _) in WRN_22_2.items()}

shapes = st.dictionaries(
    st.text("abc", min_size=1), st.tuples(*[st.integers(1, 64)] * 2, *[st.sampled_from([1, 3])] * 2), min_size=1
)


def total(shapes, densities):
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    return sum(densities[name] * sizes[name] for name in shapes) / sum(sizes.values())


def test_erk_gives_a_wide_resnet_its_published_densities():
    assert sum(math.prod(shape) for shape in SHAPES.values()) == 1_076_912
    densities = erk(SHAPES, 0.1)
    for name, (_, expected) in WRN_22_2.items():
        assert round(densities[name], 4) == expected


@pytest.mark.parametrize("name", ["uniform", "er", "erk"])
@given(shapes=shapes, density=st.floats(0.001, 1))
def test_totals_are_exact_and_no_layer_passes_one(name, shapes, density):
    densities = ALLOCATIONS[name](shapes, density)
    assert total(shapes, densities) == pytest.approx(density, rel=1e-9)
    assert all(0 < value <= 1 for value in densities.values())


@pytest.mark.parametrize("name", ["uniform+", "er+", "erk+"])
@given(shapes=shapes, density=st.floats(0.3, 1))
def test_the_capped_forms_keep_a_fifth_of_the_last_layer_and_the_total(name, shapes, density):
    densities = ALLOCATIONS[name](shapes, density)
    assert densities[list(shapes)[-1]] >= 0.2 - 1e-12
    assert total(shapes, densities) == pytest.approx(density, rel=1e-9)


def test_a_capped_form_takes_from_the_others_what_the_last_layer_needs():
    shapes = {"a": (100, 100), "head": (10, 100)}
    densities = uniform_plus(shapes, 0.1)
    assert densities == {"a": pytest.approx((0.1 * 11_000 - 200) / 10_000), "head": 0.2}
    assert erk_plus({"head": (10, 100)}, 0.5) == {"head": 0.5}


def test_a_density_that_cannot_pay_for_the_last_layer_is_refused():
    with pytest.raises(ValueError, match=r"too small to keep 0\.2 of the last layer 'head'"):
        uniform_plus({"a": (10, 10), "head": (100, 100)}, 0.01)


def test_er_does_not_look_at_the_kernel_and_erk_does():
    shapes = {"a": (64, 64, 3, 3), "b": (64, 64, 1, 1)}
    assert er(shapes, 0.1)["a"] == pytest.approx(er(shapes, 0.1)["b"])
    assert erk(shapes, 0.1)["a"] < erk(shapes, 0.1)["b"]


def test_uniform_is_uniform():
    assert set(uniform(SHAPES, 0.25).values()) == {0.25}
