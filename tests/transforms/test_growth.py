import pytest
import sympy
from torch.utils._sympy.functions import FloorDiv, Mod

from cutwork.transforms.growth import find_growth
from cutwork.transforms.sizes import Sizes

WIDTH, HEADS, SIDE, HIDDEN = sympy.symbols("width heads side hidden", positive=True, integer=True)


def make_sizes(values, equations, parameters, **titles):
    return Sizes(
        parameters={str(at): shape for at, shape in enumerate(parameters)},
        values={symbol: sympy.Integer(value) for symbol, value in values.items()},
        titles={symbol: titles.get(str(symbol), str(symbol)) for symbol in values},
        equations=equations,
    )


def test_of_a_product_one_side_grows_and_it_is_the_number_of_heads():
    values = {WIDTH: 64, HEADS: 4, SIDE: 16}
    sizes = make_sizes(values, [(WIDTH, HEADS * SIDE)], [(WIDTH, WIDTH)], heads="attention.heads", side="head_size")
    growth = find_growth(sizes, 1.5, 8)
    assert {symbol: growth.size(symbol) for symbol in values} == {WIDTH: 96, HEADS: 6, SIDE: 16}


def test_a_width_that_is_divided_grows_by_whole_parts():
    sizes = make_sizes({WIDTH: 64, SIDE: 4}, [(Mod(WIDTH, SIDE), sympy.Integer(0))], [(WIDTH, WIDTH)])
    growth = find_growth(sizes, 1.3, 1)
    assert (growth.size(WIDTH), growth.size(SIDE)) == (84, 4)


def test_sizes_that_are_equal_to_a_number_stay():
    sizes = make_sizes(
        {WIDTH: 64, HIDDEN: 128}, [(WIDTH, sympy.Integer(64)), (3 * HIDDEN, 3 * HIDDEN)], [(WIDTH, HIDDEN)]
    )
    with pytest.raises(ValueError, match="nothing can grow"):
        find_growth(make_sizes({WIDTH: 64}, [(WIDTH, sympy.Integer(64))], [(WIDTH,)]), 2, 8)
    growth = find_growth(sizes, 2, 8)
    assert (growth.size(WIDTH), growth.size(HIDDEN)) == (64, 256)
    assert not growth.grows(WIDTH)
    assert growth.grows(HIDDEN)


def test_a_size_that_cannot_follow_leads():
    # Split as evenly as three parts can be: 30, 30 and 28.
    sizes = make_sizes(
        {HIDDEN: 30, WIDTH: 88},
        [(FloorDiv(WIDTH + 2, 3), HIDDEN), (Mod(WIDTH, 8), sympy.Integer(0))],
        [(WIDTH, HIDDEN)],
    )
    growth = find_growth(sizes, 2, 4)
    assert (growth.size(WIDTH), growth.size(HIDDEN)) == (176, 59)


def test_where_no_whole_sizes_fit_the_size_is_named():
    sizes = make_sizes(
        {WIDTH: 64, HIDDEN: 128},
        [(2 * WIDTH, HIDDEN), (FloorDiv(HIDDEN, 128) * 64, WIDTH)],
        [(WIDTH, HIDDEN)],
        hidden="fc.weight[1]",
    )
    with pytest.raises(ValueError, match=r"fc.weight\[1\]: no whole size near 1.4 \* 128"):
        find_growth(sizes, 1.4, 1)
