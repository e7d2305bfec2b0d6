import json
from collections import OrderedDict

import pytest
import torch

from cutwork.tensor_tree import TensorTable

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
    with pytest.raises(ValueError, match=r"torch.sparse_coo, which the file cannot hold; convert it to strided"):
        table.put(torch.eye(2).to_sparse(), "@extra")
