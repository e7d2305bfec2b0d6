import copy
from collections.abc import Sequence

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.layers.swap import exchange
from cutwork.speed import layer_timing
from cutwork.speed.forms import FORMS, Form, form_of
from cutwork.speed.timing import Timing
from cutwork.speed.tolerance import MEASURED, PACKED


class Whole(nn.Module):
    """A layer of somebody's own, which multiplies by the weight of another."""

    def __init__(self, layer):
        super().__init__()
        self.weight, self.bias = nn.Parameter(layer.weight.detach().clone()), layer.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


class InWhole(Form):
    def is_form_of(self, layer: nn.Module) -> bool:
        return isinstance(layer, Whole)

    def why_not(self, name: str, layer: nn.Module) -> str:
        return "it has no bias" if layer.bias is None else ""

    def give(self, model: nn.Module, names: Sequence[str], *, training: bool) -> None:
        for name in names:
            layer = model.get_submodule(name)
            exchange(model, layer, Whole(layer))


@pytest.fixture
def whole(monkeypatch, tmp_path):
    """Let a form from outside be the fastest."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(FORMS, "whole", InWhole())
    seconds = {"dense": 4.0, "tiles": 2.0, "whole": 1.0}
    monkeypatch.setattr(
        layer_timing, "measure", lambda calls, **options: {form: Timing(seconds[form], 0, 5) for form in calls}
    )


class Reading(nn.Module):
    """Reads what a sparse layer has, and its weight too."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) + 0 * self.layer.sparsity.density


def sparse_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16, bias=False), Reading(nn.Linear(16, 16)))
    cw.sparsify(model, "block:8", density=0.5)
    return model.eval()


def test_a_form_of_ones_own_is_timed_chosen_given_and_taken_back(whole):
    model, x = sparse_model(), torch.randn(3, 16)
    layer = model[2].layer
    with torch.no_grad():
        y = model(x)
    plan = cw.plan(model, x)
    assert plan.rows[0].seconds == {"dense": 4.0, "tiles": 2.0, "whole": 1.0}
    assert [row.form for row in plan.rows] == ["whole", "tiles", "whole"]
    packed = cw.pack(model, x)
    assert [form_of(each) for each in (model[0], model[1], model[2].layer)] == ["whole", "tiles", "dense"]
    assert model[2].layer is layer
    assert packed.rows[2].reason.startswith("whole: the model fails with it: AttributeError: 'Whole' object has no")
    with torch.no_grad():
        torch.testing.assert_close(model(x), y)


def test_a_form_of_ones_own_is_asked_for_by_its_name(whole):
    x = torch.randn(3, 16)
    model = sparse_model()
    assert [row.form for row in cw.pack(model, x, forms={"0": "whole", "*": "!whole"}).rows][1:] == ["tiles", "tiles"]
    with pytest.raises(ValueError, match="1 cannot take the form 'whole': it has no bias"):
        cw.plan(sparse_model(), x, forms={"1": "whole"})
    with pytest.raises(ValueError, match=r"unknown form 'hole' \(did you mean 'whole'"):
        cw.plan(sparse_model(), x, forms="hole")


def test_a_form_says_when_a_layer_has_it():
    model, x = sparse_model(), torch.randn(3, 16)
    forms = []
    for form in FORMS:
        twin = copy.deepcopy(model)
        cw.pack(twin, x, forms={"0": form})
        forms.append(form_of(twin[0]))
    assert forms == list(FORMS)


def test_a_form_of_fewer_bits_has_tolerances():
    precisions = {form.precision for form in FORMS.values()} - {None}
    assert precisions == {"bf16", "int8"} <= MEASURED.keys() <= PACKED.keys()
