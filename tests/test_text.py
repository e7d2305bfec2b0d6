import pytest
from torch import nn

import cutwork as cw
from cutwork.text import shorten


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("blok:16", "block:16"),
        ("block16", "block:16"),
        ("Block:8x4", "block:8x4"),
        ("block-16", "block:16"),
        ("vektor:8", "vector:8"),
        ("shufled:16", "shuffled:16"),
        ("unstructed", "unstructured"),
    ],
)
def test_a_pattern_that_is_nearly_right_is_suggested(given, meant):
    with pytest.raises(ValueError, match=rf"unknown pattern '{given}' \(did you mean '{meant}'\?\); write"):
        cw.parse(given)


@pytest.mark.parametrize("given", ["", "fast", "16", "2:x", "\n", "5d:5"])
def test_what_is_near_nothing_is_left_alone(given):
    with pytest.raises(ValueError, match=r"unknown pattern '[^']*'; write 'unstructured'"):
        cw.parse(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "rigle"}, r"unknown method 'rigle' \(did you mean 'rigl'\?\)"),
        ({"storage": "compress"}, r"unknown storage 'compress' \(did you mean 'compressed'\?\)"),
        ({"allocation": "uniforme"}, r"unknown allocation 'uniforme' \(did you mean 'uniform'\?\)"),
        ({"init": "magnitud"}, r"unknown score 'magnitud' \(did you mean 'magnitude'\?\)"),
    ],
)
def test_other_names_that_are_nearly_right_are_suggested(options, message):
    with pytest.raises(ValueError, match=message):
        cw.sparsify(nn.Linear(16, 16), "block:4", density=0.5, **options)


@pytest.mark.parametrize("width", range(12, 50))
def test_short_names_keep_their_width_and_their_number(width):
    short = [shorten(f"encoder.layers.{index}.self_attention.output.dense", width) for index in range(10)]
    assert max(map(len, short)) <= width
    assert len(set(short)) == len(short)


def test_a_name_that_is_all_numbers_is_cut_at_its_beginning():
    assert shorten("1.2.3.4.5.6.7.8.9", 6) == "..8..9"
