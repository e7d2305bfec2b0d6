import pytest
import torch
from torch import nn

from cutwork.transforms import wide

from .nets import make_inputs, make_net


class Residual(nn.Module):
    """A layer whose output counts for nothing at first, a table of positions and a frozen layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.middle, self.last = nn.Linear(4, 32), nn.Linear(32, 32), nn.Linear(32, 3)
        self.positions = nn.Parameter(torch.sin(torch.arange(5.0)[:, None] * torch.arange(1.0, 33)))
        nn.init.zeros_(self.middle.weight)
        nn.init.constant_(self.middle.bias, 0.5)
        self.stem.requires_grad_(requires_grad=False)

    def forward(self, x):
        x = self.stem(x) + self.positions
        return self.last(x + self.middle(x))


X = torch.rand(2, 5, 4)


def test_constants_stay_and_tables_repeat_their_columns():
    model = Residual()
    net = wide(model, 0.25, inputs=X).model
    assert torch.equal(net.middle.weight, torch.zeros(64, 64))
    assert torch.equal(net.middle.bias, torch.full((64,), 0.5))
    assert torch.equal(net.positions, model.positions.repeat_interleave(2, dim=1))
    assert [each.requires_grad for each in net.parameters()] == [each.requires_grad for each in model.parameters()]


def test_drawn_weights_are_numbers_of_the_layer_scaled_to_their_inputs():
    torch.manual_seed(0)
    model = Residual()
    net = wide(model, 0.25, inputs=X).model
    known = {round(number, 5) for number in (model.last.weight / 2**0.5).flatten().tolist()}
    assert {round(number, 5) for number in net.last.weight.flatten().tolist()} <= known
    assert {*net.last.bias.tolist()} <= {*model.last.bias.tolist()}
    # The stem reads as much as before.
    assert {*net.stem.weight.flatten().tolist()} <= {*model.stem.weight.flatten().tolist()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_numbers_keep_their_type(dtype):
    net = wide(Residual().to(dtype), 0.25, inputs=X.to(dtype)).model
    assert {each.dtype for each in net.parameters()} == {dtype}


def test_weights_that_were_shared_stay_so():
    net = wide(make_net("gpt2"), 0.25, inputs=make_inputs("gpt2")).model
    assert net.lm_head.weight is net.transformer.wte.weight


def test_copies_divide_where_a_layer_sums():
    model = make_net("fused-attention")
    net = wide(model, 0.25, inputs=make_inputs("fused-attention"), weights="copy").model
    old, new = model.attention, net.attention
    # Heads of 16 stand twice behind each other, in queries, keys and values alike.
    heads = new.qkv.weight.view(3, 8, 16, 128)
    assert torch.equal(heads[:, ::2], heads[:, 1::2])
    torch.testing.assert_close(new.out.weight.sum(), 2 * old.out.weight.sum())
