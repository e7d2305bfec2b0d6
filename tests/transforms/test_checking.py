import copy

import pytest
import torch
from torch import nn

import cutwork as cw

from . import members
from .members import ALL

WIDENING = ("wide", "wide_factorized")
X = torch.rand(2, 20)


def make_sparse(storage):
    model = members.make_mlp()
    cw.sparsify(model, {"2": "block:8"}, density=0.5, storage=storage)
    return model


class Deciding(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Adding(nn.Module):
    """Adds something of a fixed width, so that what it is given cannot grow."""

    def forward(self, x):
        return x + torch.ones(64)


class Shared(nn.Module):
    """A layer that is called at a width of the model, and at one that comes from outside."""

    def __init__(self):
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(20, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.last(self.shared(self.first(x)) + self.shared(torch.ones(64)))


def make_tied():
    model = nn.Sequential(nn.Linear(20, 64), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))
    model[1].weight = model[2].weight
    return model


MODELS = {
    "sparse": lambda: make_sparse("dense"),
    "compressed": lambda: make_sparse("compressed"),
    "deciding": lambda: nn.Sequential(nn.Linear(20, 64), Deciding(), nn.Linear(64, 64), nn.Linear(64, 10)),
    "compiled": lambda: nn.Sequential(nn.Linear(20, 64), torch.compile(nn.Linear(64, 64)), nn.Linear(64, 10)),
    "traced": lambda: torch.jit.trace(members.make_mlp(), X),
    "lazy": lambda: nn.Sequential(nn.Linear(20, 64), nn.LazyLinear(64), nn.Linear(64, 10)),
    "meta": lambda: members.make_mlp().to("meta"),
    "fixed": lambda: nn.Sequential(nn.Linear(20, 64), Adding(), nn.Linear(64, 64), Adding(), nn.Linear(64, 10)),
    "shared": Shared,
    "tied": make_tied,
    "narrow": lambda: nn.Sequential(nn.Linear(20, 2), nn.Linear(2, 2), nn.Linear(2, 10)),
    "mlp": members.make_mlp,
}
ONLY_ENDS = r"no layer of this model can be exchanged \(0: it reads what the model is given; "
# The model, the density, the members that refuse it, and what they say.
REFUSED = [
    ("sparse", 0.25, ALL, r"^2 is sparse already; bake\(\) the model first"),
    ("compressed", 0.25, ALL, r"^2 is sparse already; bake\(\) the model first"),
    ("compiled", 0.25, ALL, r"^1 is compiled already; give the model as it was before"),
    ("traced", 0.25, ALL, r"^the model itself is compiled already"),
    ("lazy", 0.25, ALL, r"^1.weight gets its sizes at the first call; call the model once"),
    ("meta", 0.25, ALL, r"^0.weight has no numbers, on the meta device"),
    ("mlp", 1, ALL, "^density=1 keeps everything, so nothing could become larger"),
    ("mlp", 1.5, ALL, r"^density=1.5 is outside \(0, 1\]"),
    ("mlp", 0.95, WIDENING, r"^0.weight\[0\]: 1.026 \* 64 rounds to 64, and nothing else grows; use a smaller density"),
    ("mlp", 0.95, ["parallel"], "^density=0.95 gives one branch"),
    ("mlp", 0.99, ["doped"], "^2: at density=0.99 a pair of rank 1 costs more than a layer of 64 inputs"),
    ("narrow", 0.25, ["doped"], "^1: at density=0.25 a pair of rank 1 costs more than a layer of 2 inputs"),
    ("narrow", 0.25, WIDENING, "^what stays dense in the larger model needs 480 operations, of which 0 320, all of"),
    ("deciding", 0.25, WIDENING, "^1: the model cannot run without numbers"),
    ("fixed", 0.25, WIDENING, r"^nothing can grow: every width, also of 2.weight, is tied to a number"),
    ("shared", 0.25, WIDENING, "^what stays dense in the larger model needs 54,272 operations, of which shared 49,152"),
    ("tied", 0.25, ["parallel", "factorized", "doped"], rf"{ONLY_ENDS}1: its weight is 2.weight too; 2: its weight is"),
]


def describe(model):
    """Return all of a model that may not change: its modules, their modes and the very bits of its tensors."""
    modules = [(name, id(module), type(module), module.training) for name, module in model.named_modules()]
    tensors = [*model.named_parameters(), *model.named_buffers()]
    numbers = [
        None if nn.parameter.is_lazy(each) or each.is_meta else copy.deepcopy(each).detach().numpy().tobytes()
        for _, each in tensors
    ]
    return modules, [(name, id(each), each.requires_grad) for name, each in tensors], numbers


@pytest.mark.parametrize(
    ("name", "density", "member", "message"),
    [
        pytest.param(name, density, member, message, id=f"{name}-{density}-{member}")
        for name, density, refusing, message in REFUSED
        for member in refusing
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_what_cannot_be_changed_is_refused_by_name_and_stays_as_it_is(name, density, member, message):
    model = MODELS[name]()
    x = X.to("meta") if name == "meta" else X
    before = describe(model)
    with pytest.raises(ValueError, match=message):
        getattr(cw.transforms, member)(model, density, inputs=x)
    assert describe(model) == before


@pytest.mark.parametrize("member", ALL)
@pytest.mark.parametrize("density", ["0.5", None])
def test_a_density_that_is_no_number_is_refused(member, density):
    with pytest.raises(TypeError, match=r"^density is a number; got .* write density=0.1"):
        getattr(cw.transforms, member)(members.make_mlp(), density, inputs=X)


@pytest.mark.parametrize("member", ["parallel", "factorized", "doped"])
@pytest.mark.parametrize("name", ["deciding", "fixed", "shared"])
def test_members_that_keep_all_widths_take_what_cannot_be_traced(name, member):
    model = MODELS[name]()
    larger = getattr(cw.transforms, member)(
        model, 0.25, inputs=X, layers="shared" if name == "shared" else "2", weights="copy"
    )
    torch.testing.assert_close(larger.model(X), model(X), rtol=1e-4, atol=1e-5)
