import copy

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.layers.compressed import CompressedLinear
from cutwork.layers.int8 import Int8Linear
from cutwork.speed import layer_timing
from cutwork.speed.forms import form_of
from cutwork.speed.timing import Timing


@pytest.fixture(autouse=True)
def speed(monkeypatch, tmp_path):
    """Let the forms of fewer bits be faster than tiles, and these faster than dense, whatever they really take."""
    seconds = {"dense": 8.0, "tiles": 4.0, "tiles-bf16": 2.0, "tiles-int8": 1.0}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        layer_timing, "measure", lambda calls, **options: {form: Timing(seconds[form], 0, 5) for form in calls}
    )


class Reading(nn.Module):
    """Reads of its layer what only a dense one has, as many models do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x):
        return self.layer(x.to(self.layer._parameters["weight"].dtype))


class Bypassing(nn.Module):
    """Computes with its layer, and differently where this is no `nn.Linear`."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x):
        return self.layer(x) * (1 if isinstance(self.layer, nn.Linear) else 100)


class Calling(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x):
        return self.layer(x)


def model_of(*kinds):
    torch.manual_seed(0)
    model = nn.Sequential(*(kind() for kind in kinds))
    cw.sparsify(model, "block:8", density=0.5)
    return model.eval()


def forms_of(model):
    return [form_of(part.layer) for part in model]


@pytest.mark.parametrize("precisions", [(), ("bf16",), ("int8",)])
@pytest.mark.parametrize("breaking", [Reading, Bypassing])
@pytest.mark.parametrize("places", [(0,), (3,), (1, 4), (0, 1, 2, 3, 4)])
def test_layers_with_which_a_model_breaks_stay_dense_and_say_so(places, breaking, precisions):
    model = model_of(*(breaking if place in places else Calling for place in range(5)))
    x = torch.randn(3, 16)
    with torch.no_grad():
        y = model(x)
    weights = {id(part.layer.weight) for part in model}
    plan = cw.pack(model, x, precisions=precisions)
    form = {(): "tiles", ("bf16",): "tiles-bf16", ("int8",): "tiles-int8"}[precisions]
    expected = ["dense" if place in places else form for place in range(5)]
    assert forms_of(model) == [row.form for row in plan.rows] == expected
    for place in places:
        harm = (
            "the model fails with it: KeyError: 'weight'" if breaking is Reading else "with it the outputs of the model"
        )
        assert plan.rows[place].reason.startswith(f"{form}: {harm}")
        assert plan.rows[place].gain == 1
        assert id(model[place].layer.weight) in weights
        assert model[place].layer.sparsity.rest is not None
    with torch.no_grad():
        torch.testing.assert_close(model(x), y, atol=0.1, rtol=0.1)
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())


def test_what_is_wrong_with_a_form_is_said():
    x = torch.randn(3, 16)
    assert cw.pack(model_of(Reading), x).rows[0].reason == "tiles: the model fails with it: KeyError: 'weight'"
    assert cw.pack(model_of(Bypassing), x).rows[0].reason == "tiles: with it the outputs of the model differ by 99"
    assert "the outputs of the model differ by inf" in str(cw.pack(model_of(Shaping), x))


class Shaping(Calling):
    def forward(self, x):
        y = self.layer(x)
        return y if isinstance(self.layer, nn.Linear) else y[:1]


class Masking(Calling):
    """Returns infinities and numbers that are none, which are no differences."""

    def forward(self, x):
        return {"y": self.layer(x), "never": torch.tensor([float("inf"), float("nan")]), "first": x.argmax()}


class Hiding(Masking):
    def forward(self, x):
        y = self.layer(x)
        return y if isinstance(self.layer, nn.Linear) else y.index_fill(0, torch.tensor(0), float("nan"))


def test_infinities_are_compared_too():
    assert cw.pack(model_of(Masking), torch.randn(3, 16)).rows[0].form == "tiles"
    assert cw.pack(model_of(Hiding), torch.randn(3, 16)).rows[0].form == "dense"


def test_a_model_that_returns_something_else_each_time_only_has_to_run():
    class Counting(Calling):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return self.layer(x) * self.calls

    assert cw.pack(model_of(Counting, Reading, Calling), torch.randn(3, 16)).rows[1].form == "dense"
    model = model_of(Counting, Reading, Calling)
    cw.pack(model, torch.randn(3, 16))
    assert forms_of(model) == ["tiles", "dense", "tiles"]


def test_a_form_asked_for_by_name_is_refused_where_the_model_breaks_with_it_and_nothing_has_changed():
    model, x = model_of(Calling, Reading, Calling), torch.randn(3, 16)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ValueError,
        match=r"^1\.layer cannot take the form 'tiles': the model fails with it: KeyError: 'weight'; leave",
    ):
        cw.pack(model, x, forms={"1.*": "tiles"})
    assert forms_of(model) == ["dense"] * 3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [row.form for row in cw.pack(model, x, forms="tiles").rows] == ["tiles", "dense", "tiles"]


def test_nothing_has_changed_where_packing_is_interrupted(monkeypatch):
    model, x = model_of(Calling, Calling), torch.randn(3, 16)

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Int8Linear, "__init__", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cw.pack(model, x, precisions="int8")
    assert forms_of(model) == ["dense"] * 2
    model(x)


def test_a_packed_layer_gets_back_the_form_it_had_with_its_numbers():
    class Narrow(Calling):
        def forward(self, x):
            return self.layer(x).to(self.layer.trained.dtype)

    model, x = model_of(Calling, Narrow), torch.randn(3, 16)
    cw.pack(model, x)
    values = model[1].layer.values
    numbers = values.detach().clone()
    plan = cw.pack(model, x, precisions="bf16")
    assert [row.form for row in plan.rows] == ["tiles-bf16", "tiles"]
    assert model[1].layer.values is values and torch.equal(values, numbers)
    assert model[0].layer.values.dtype == torch.bfloat16


class Training(Calling):
    """Breaks where gradients are formed."""

    def forward(self, x):
        return self.layer(Broken.apply(x) if isinstance(self.layer, CompressedLinear) else x)


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, dy):
        raise RuntimeError("no way back")


def test_for_training_gradients_are_formed_too_and_not_stored():
    model, x = model_of(Calling, Training, Calling).train(), torch.randn(3, 16)
    plan = cw.pack(model, x, training=True)
    assert forms_of(model) == ["tiles", "dense", "tiles"]
    assert plan.rows[1].reason == "tiles: the model fails with it: RuntimeError: no way back"
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert model[1].layer.sparsity.rest is None
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert [row.form for row in cw.pack(model, x, training=True).rows] == ["tiles"] * 3


def test_layers_that_share_a_weight_are_taken_back_together():
    model = nn.Sequential(Calling(), Reading())
    model[1].layer.weight = model[0].layer.weight
    cw.sparsify(model, "block:8", density=0.5)
    cw.pack(model, torch.randn(3, 16))
    assert forms_of(model) == ["dense", "dense"]
    assert model[0].layer.weight is model[1].layer.weight


def test_a_layer_in_several_places_is_rounded_and_taken_back_in_all_of_them():
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 16), torch.randn(3, 16)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    cw.sparsify(model, "block:8", density=0.5)
    cw.pack(model, x, precisions="int8")
    assert isinstance(model[0], Int8Linear) and model[2] is model[0]

    class Both(nn.Sequential):
        def forward(self, x):
            assert not isinstance(self[2], Int8Linear)
            return super().forward(x)

    model = Both(layer, nn.Tanh(), layer)
    cw.pack(model, x, precisions="int8")
    assert model[0] is layer and model[2] is layer


def test_many_layers_that_do_no_harm_cost_one_pass():
    passes = []

    class Counting(nn.Sequential):
        def forward(self, x):
            passes.append(1)
            return super().forward(x)

    torch.manual_seed(0)
    model = Counting(*(nn.Linear(16, 16) for _ in range(32)))
    cw.sparsify(model, "block:8", density=0.5)
    cw.pack(model, torch.randn(3, 16))
    # To see what layers are given, to see what the model returns, and to see that it still does.
    assert len(passes) == 3


def test_a_model_that_is_one_layer_has_no_place_for_an_int8_layer():
    model = nn.Linear(16, 16)
    cw.sparsify(model, "block:8", density=0.5)
    with pytest.raises(
        ValueError, match=r"the model itself cannot take the form 'tiles-int8': .* put it into a module"
    ):
        cw.pack(model, torch.randn(3, 16), forms="int8")
    assert cw.pack(model, torch.randn(3, 16), precisions="int8").rows[0].form == "tiles"
