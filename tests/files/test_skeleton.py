import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.files.skeleton import skeleton
from cutwork.layers.attention import open_attention


def models():
    shared = nn.Linear(4, 4)
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    compressed = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    cw.sparsify(compressed, "block:2", density=0.5, storage="compressed", method=cw.RigL(every=2, until=4))
    learned = nn.Sequential(nn.Linear(8, 8))
    cw.sparsify(learned, "2:4", method="supermask")
    return {
        "shared": nn.Sequential(shared, nn.ReLU(), shared),
        "tied": tied,
        "attention": nn.TransformerEncoderLayer(8, 2, 16),
        "compressed": compressed,
        "learned": learned,
        "lists": nn.ParameterList([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3), requires_grad=False)]),
        "lazy": nn.Sequential(nn.LazyLinear(3)),
    }


def outlines(model):
    state = model.state_dict(keep_vars=True)
    first = {}
    for key, tensor in state.items():
        first.setdefault(id(tensor), key)
    lazy = nn.parameter.UninitializedParameter
    return {
        key: (first[id(t)], t.dtype, None if isinstance(t, lazy) else t.shape, t.requires_grad)
        for key, t in state.items()
    }


@pytest.mark.parametrize("name", list(models()))
def test_a_skeleton_has_the_same_names_types_shapes_and_ties(name):
    model = models()[name]
    bare = skeleton(model)
    assert list(dict(bare.named_modules())) == list(dict(model.named_modules()))
    assert outlines(bare) == outlines(model)
    assert [type(module) for module in bare.modules()] == [type(module) for module in model.modules()]


def test_what_is_done_to_a_skeleton_is_not_done_to_the_model():
    model = models()["attention"]
    hooks = dict(model.linear1._forward_hooks)
    before, places = repr(model), list(vars(model.linear1))
    bare = skeleton(model)
    open_attention(bare.self_attn)
    bare.linear1.__class__ = nn.Identity
    bare.linear1.something = 1
    bare.linear2 = nn.ReLU()
    bare.linear1.register_forward_hook(print)
    bare.norm1.weight = None
    assert repr(model) == before
    assert list(vars(model.linear1)) == places
    assert dict(model.linear1._forward_hooks) == hooks
    assert model.norm1.weight.shape == (8,)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_what_is_written_in_torchscript_stays_as_it_is():
    model = nn.Sequential(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), nn.Linear(2, 2))
    bare = skeleton(model)
    assert bare[0] is model[0]
    assert list(outlines(bare)) == list(outlines(model))
