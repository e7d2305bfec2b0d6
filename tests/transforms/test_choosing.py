import pytest
import torch
from torch import nn

from cutwork.evaluation import call_of
from cutwork.transforms.choosing import HEAD, STEM, choose

from . import members


def chosen(model, x, layers=None):
    return choose(model, call_of(model, (x,)), layers)


@pytest.mark.parametrize(
    ("name", "skipped"),
    [
        ("mlp", {"0": STEM, "4": HEAD}),
        ("cnn", {"0": STEM, "8": HEAD}),
        ("mixer", {"stem": STEM, "head": HEAD}),
        ("resnet18", {"conv1": STEM, "fc": HEAD}),
        ("bert", {"pooler.dense": HEAD}),
        ("gpt2", {"lm_head": "its weight is transformer.wte.weight too"}),
    ],
)
def test_the_first_and_the_last_layer_stay(name, skipped):
    found = chosen(*members.make_model(name))
    assert found.skipped == skipped
    assert found.layers


def test_a_stem_is_one_also_where_weights_are_frozen():
    model, x = members.make_model("mlp")
    model.requires_grad_(False)
    assert chosen(model, x).skipped == {"0": STEM, "4": HEAD}
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_globs_may_name_the_first_and_the_last():
    model, x = members.make_model("mlp")
    assert list(chosen(model, x, "*").layers) == ["0", "2", "4"]
    assert list(chosen(model, x, ["4", "0"]).layers) == ["0", "4"]


def refuse(model, x, layers, match):
    before = [*model.named_modules()]
    with pytest.raises(ValueError, match=match):
        chosen(model, x, layers)
    assert [*model.named_modules()] == before


def test_what_cannot_be_exchanged_is_refused_by_name():
    model, x = members.make_model("mlp")
    refuse(model, x, "6", r"no layer matches '6'; the linear layers and 2-d convolutions are '0', '2', '4'")
    model[2].register_forward_hook(lambda *_: None)
    refuse(model, x, "2", r"^2: it has hooks, which would be lost")
    assert chosen(model, x, ["0"]).layers
    refuse(nn.Linear(4, 4), torch.rand(1, 4), "*", "the model itself: nothing can be put in its place")
    refuse(
        nn.Sequential(nn.Linear(4, 4)), torch.rand(1, 4), None, r"no layer of this model can be exchanged \(0: it reads"
    )
    torch.nn.utils.parametrizations.weight_norm(model[4])
    refuse(model, x, "4", "4: its weight is computed anew by a parametrization")


def test_what_reads_weights_itself_stays():
    model, x = members.make_model("vit")
    found = chosen(model, x)
    assert {name.rpartition(".")[2] for name in found.layers} == {"0", "3"}
    reason = found.skipped["encoder.layers.encoder_layer_0.self_attention.q_proj"]
    assert reason.endswith("reads its weight itself, as nn.MultiheadAttention does")


def test_what_is_not_called_stays():
    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x):
            return self.d(self.c(nn.functional.linear(self.a(x), self.b.weight)))

    found = chosen(Reading(), torch.rand(2, 8))
    assert list(found.layers) == ["c"]
    assert found.skipped["b"].startswith("it is not called for these inputs")


def test_depthwise_convolutions_stay():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1))
    found = chosen(model, torch.rand(1, 3, 8, 8))
    assert list(found.layers) == ["2"]
    assert found.skipped["1"] == "it reads or makes a single channel"
