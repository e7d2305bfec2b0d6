import json
import math
from collections import OrderedDict
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch

from cutwork.files.tensor_tree import TensorTable

VALUES = [
    None,
    True,
    3,
    0.1,
    float("inf"),
    "text",
    [],
    (),
    {},
    [1, [2, (3, [4])]],
    {"a": {"b": (1, 2)}},
    {0: "int key", (1, 2): "tuple key", "$tensor": "a key like ours"},
    {"$bits": 1},
    OrderedDict(a=1),
]


def through_json(value, **options):
    table = TensorTable({})
    text = json.dumps(table.put(value, "value", **options))
    return TensorTable(table.tensors).take(json.loads(text))


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_a_value_comes_back_as_it_was(value):
    back = through_json(value)
    assert back == value
    assert type(back) is (dict if isinstance(value, dict) else type(value))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(2.5),
        torch.randn(3, 4).T,
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.randn(5, dtype=torch.bfloat16),
        torch.tensor([float("nan"), -0.0, float("inf")]),
        torch.zeros(0, 3),
        torch.randn(2, requires_grad=True),
        torch.rand(3, 7) > 0.5,
        torch.tensor(True),
        torch.zeros(0, dtype=torch.bool),
        torch.get_rng_state(),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{list(tensor.shape)}",
)
def test_a_tensor_comes_back_bit_for_bit(tensor):
    back = through_json({"deep": [tensor]})["deep"][0]
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert not back.requires_grad
    assert back.contiguous().reshape(-1).view(torch.uint8).tolist() == (
        tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist()
    )


def test_one_tensor_in_two_places_is_stored_once_and_stays_one():
    tensor = torch.ones(4)
    table = TensorTable({})
    node = table.put({"a": tensor, "b": tensor, "c": tensor.clone()}, "x")
    assert list(table.tensors) == ["x/a", "x/c"]
    back = table.take(node)
    assert back["a"] is back["b"]
    assert back["a"] is not back["c"]


def test_a_bool_tensor_takes_a_bit_for_each_entry():
    table = TensorTable({})
    table.put(torch.ones(100, 10, dtype=torch.bool), "mask")
    assert table.tensors["mask"].nbytes == 125


def test_only_what_a_mask_keeps_is_stored():
    mask = torch.rand(8, 8) > 0.7
    tensor = torch.where(mask, torch.randn(8, 8), 0)
    table = TensorTable({})
    node = table.put({"weight": tensor, "other": torch.ones(8)}, "x", mask=("mask", mask))
    assert torch.equal(table.tensors["x/weight"], tensor[mask])
    assert table.tensors["mask"].nbytes == 8
    back = TensorTable(table.tensors).take(node)
    assert torch.equal(back["weight"], tensor)
    assert torch.equal(back["other"], torch.ones(8))


@pytest.mark.parametrize("outside", [1.0, float("nan")])
def test_a_tensor_with_numbers_outside_the_mask_is_stored_whole(outside):
    mask = torch.eye(4, dtype=torch.bool)
    tensor = torch.eye(4)
    tensor[0, 1] = outside
    back = through_json(tensor, mask=("mask", mask))
    torch.testing.assert_close(back, tensor, equal_nan=True, rtol=0, atol=0)


def test_a_copy_comes_out_of_the_table():
    table = TensorTable({})
    node = table.put(torch.ones(2), "x")
    table.take(node).zero_()
    assert torch.equal(table.tensors["x"], torch.ones(2))


def test_what_cannot_be_stored_is_named():
    table = TensorTable({})
    with pytest.raises(ValueError, match=r"@extra/hook/1 is a function, which a file that can hold no code"):
        table.put({"hook": [1, lambda: 0]}, "@extra")
    with pytest.raises(ValueError, match=r"@extra/wave is a tensor of torch.complex64"):
        table.put({"wave": torch.zeros(2, dtype=torch.complex64)}, "@extra")
    with pytest.raises(ValueError, match=r"@extra/by has a key with a tensor; give keys of numbers, text or tuples"):
        table.put({"by": {(1, torch.ones(1)): 2}}, "@extra")
    with pytest.raises(ValueError, match=r"torch.sparse_coo, which the file cannot hold; convert it to strided"):
        table.put(torch.eye(2).to_sparse(), "@extra")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.float64(0.1), 0.1),
        (np.int64(3), 3),
        (np.uint8(255), 255),
        (np.bool_(True), True),
        (np.str_("text"), "text"),
        (Path("runs/1"), "runs/1"),
        (PureWindowsPath("runs/1"), "runs\\1"),
        (torch.Size([2, 3]), (2, 3)),
        ({np.int64(3): np.float32(1), Path("a"): None}, {3: 1.0, "a": None}),
        (float("-inf"), float("-inf")),
    ],
    ids=repr,
)
def test_what_means_a_number_or_text_comes_back_as_one(value, expected):
    back = through_json(value)
    assert back == expected
    assert type(back) is type(expected)
    if isinstance(back, dict):
        assert [type(key) for key in back] == [type(key) for key in expected]


def test_what_is_not_a_number_stays_so():
    for value in (float("nan"), np.float32("nan")):
        back = through_json(value)
        assert type(back) is float
        assert math.isnan(back)


@pytest.mark.parametrize(
    "value", [np.ones(2), np.datetime64("2026-01-01"), np.complex64(1), torch.float32, {1, 2}, b""], ids=repr
)
def test_what_means_something_else_is_refused(value):
    with pytest.raises(ValueError, match=r"@extra/it is a .*, which a file that can hold no code cannot hold"):
        TensorTable({}).put({"it": value}, "@extra")


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


def test_values_lie_at_most_a_hundred_deep():
    assert through_json(nested(100)) == nested(100)
    with pytest.raises(ValueError, match="lies 101 deep, or in itself; a file holds what is at most 100 deep"):
        through_json(nested(101))
    circle = []
    circle.append(circle)
    with pytest.raises(ValueError, match="lies 101 deep, or in itself"):
        through_json(circle)
    with pytest.raises(ValueError, match="it lies more than 100 deep"):
        TensorTable({}).check(nested(101), "it")
    TensorTable({}).check(nested(100), "it")


BITS_OF_8 = {"$bits": "mask", "shape": [8]}
BAD = {
    "no form": ({"$what": 1}, r"has the form \$what, which is unknown"),
    "two forms": ({"$tensor": "weight", "$bits": "mask"}, "which is unknown"),
    "a form and more": ({"$tensor": "weight", "a": 1}, "which is unknown"),
    "no list": ({"$tuple": 1}, "that is no list"),
    "no pairs": ({"$pairs": [[1, 2, 3]]}, "no key with a value"),
    "no pair": ({"$pairs": ["ab"]}, "no key with a value"),
    "a key that is a list": ({"$pairs": [[[1], 2]]}, "no key with a value"),
    "a key that holds a list": ({"$pairs": [[{"$tuple": [[1]]}, 2]]}, "no key with a value"),
    "a key that is a dict": ({"$pairs": [[{"a": 1}, 2]]}, "no key with a value"),
    "no tensor": ([{"a": {"$tensor": "other"}}], "is the tensor 'other', which the file does not hold"),
    "no name": ({"$tensor": ["weight"]}, "which the file does not hold"),
    "no shape": ({"$bits": "mask", "shape": 8}, "has the shape 8, which is none"),
    "a negative size": ({"$bits": "mask", "shape": [-1, -8]}, "which is none"),
    "a size that is none": ({"$bits": "mask", "shape": [8.0]}, "which is none"),
    "a true size": ({"$bits": "mask", "shape": [8, True]}, "which is none"),
    "a huge shape": ({"$bits": "mask", "shape": [10**11]}, "needs 100000000000 bits .*; the file holds 8"),
    "a huge empty shape": ({"$bits": "none", "shape": [0, 2**40, 2**40]}, "needs 0 bits"),
    "bits that are none": ({"$bits": "weight", "shape": [8]}, "needs 8 bits"),
    "no mask": ({"$kept": "weight", "mask": None}, "is what a mask keeps, but has none"),
    "a mask that is none": ({"$kept": "weight", "mask": {"$tensor": "mask"}}, "but has none"),
    "too few kept": ({"$kept": "few", "mask": BITS_OF_8}, r"holds \[2\] numbers, which is not what its mask keeps"),
    "kept of a matrix": ({"$kept": "matrix", "mask": BITS_OF_8}, r"holds \[1, 3\] numbers"),
    "two forms of one": (
        [{"$tensor": "weight"}, {"$kept": "weight", "mask": BITS_OF_8}],
        "another form than elsewhere",
    ),
    "two shapes of one": ([BITS_OF_8, {"$bits": "mask", "shape": [4]}], "in another form than elsewhere"),
}


def small_table():
    tensors = {"weight": torch.ones(3), "few": torch.ones(2), "matrix": torch.ones(1, 3)}
    bits = {"mask": torch.tensor([0b10100001], dtype=torch.uint8), "none": torch.zeros(0, dtype=torch.uint8)}
    return TensorTable(tensors | bits)


@pytest.mark.parametrize("what", BAD)
def test_json_that_stands_for_nothing_is_refused(what):
    node, words = BAD[what]
    with pytest.raises(ValueError, match=f"^it .*{words}"):
        small_table().check(node, "it")


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_what_was_put_passes_the_check(value):
    table = TensorTable({})
    mask = torch.eye(3, dtype=torch.bool)
    node = table.put([value, {"kept": torch.eye(3), (1, ("a", 2)): mask}, torch.ones(2)], "it", mask=("mask", mask))
    TensorTable(table.tensors).check(json.loads(json.dumps(node)), "it")


def test_an_outline_has_types_and_shapes_but_no_memory():
    table = small_table()
    node = {"a": {"$tensor": "weight"}, "b": [BITS_OF_8], "c": {"$kept": "weight2", "mask": BITS_OF_8}}
    table.tensors["weight2"] = torch.ones(3, dtype=torch.float64)
    table.check(node, "it")
    outline = table.outline()
    taken, whole = outline.take(node), table.take(node)
    for of, found in ((whole["a"], taken["a"]), (whole["b"][0], taken["b"][0]), (whole["c"], taken["c"])):
        assert found.is_meta
        assert (found.shape, found.dtype) == (of.shape, of.dtype)
    assert outline.bytes_taken == table.bytes_taken == 3 * 4 + 8 + 8 * 8
