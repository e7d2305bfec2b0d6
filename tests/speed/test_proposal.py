import copy
import math
import re
from collections import OrderedDict
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import cutwork as cw
from cutwork.layers.compressed import CompressedLinear
from cutwork.patterns import Block
from cutwork.speed.profile import profile


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def pass_clock(monkeypatch):
    """Let passes be timed by a clock that only moves when a layer says so."""
    machine = SimpleNamespace(now=0.0, calls=0)
    monkeypatch.setattr("cutwork.speed.proposal.profile", partial(profile, clock=lambda: machine.now))
    return machine


def by_density(layer):
    """Say how much of its dense time a layer takes as tiles."""
    return layer.sparsity.density * (3 if layer.out_features == 3 else 1)


def three_parts(clock, share=by_density, spread=0.0):
    """Return a model of 5 ms, of which two layers take 2 each."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))

    def takes(seconds):
        def move(layer, *_):
            clock.calls += 1
            # Something else may stop every pass, each time in another place.
            stop = spread * (clock.calls % 7 == 0)
            clock.now += stop + seconds * (share(layer) if isinstance(layer, CompressedLinear) else 1)

        return move

    for layer, seconds in zip(model, (2e-3, 1e-3, 2e-3), strict=True):
        layer.register_forward_hook(takes(seconds))
    return model


def test_a_proposal_reaches_the_goal_with_most_weights_left(pass_clock):
    x = torch.randn(5, 64)
    model = three_parts(pass_clock)
    proposal = cw.plan(model, x, speedup=1.8, patterns=["vector:8", "block:8"], densities=[0.5, 0.2, 0.1])
    # 5 ms of which the layers take 2 each: at 0.2 they save 1.6 and 0.8.
    assert proposal.speedups["vector:8"][0.2] == pytest.approx(5 / (5 - 1.6 - 0.8))
    assert (proposal.pattern, proposal.density) == ("vector:8", 0.2)
    assert proposal.patterns == {"*": "dense", "0": "vector:8", "2": "vector:8"}
    assert proposal.outside == pytest.approx(0.2)
    assert [row.dense_s for row in proposal.rows] == pytest.approx([2e-3, 2e-3])
    assert "1.8x is reached by vector:8 at density 0.2," in str(proposal)
    cw.sparsify(model, proposal.patterns, density=proposal.density)
    far = cw.plan(three_parts(pass_clock), x, speedup=10, densities=[0.5])
    assert far.patterns is None
    assert "10x is out of reach of these patterns and densities" in str(far)
    assert "About 20% of the time" in str(far)
    assert "end of all" not in str(far)


def test_a_proposal_takes_one_pattern_and_one_density_alone(pass_clock):
    for pattern in ("block:8", Block(8, 8)):
        proposal = cw.plan(three_parts(pass_clock), torch.ones(5, 64), speedup=1.5, patterns=pattern, densities=0.2)
        assert list(proposal.speedups) == ["block:8"]
        assert list(proposal.speedups["block:8"]) == [0.2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"densities": [-0.1]}, "^-0.1 is among the densities; each is a number above 0 and up to 1"),
        ({"densities": [0.5, 0]}, "^0 is among the densities"),
        ({"densities": [1.5]}, "1.5 is among the densities"),
        ({"densities": [math.nan]}, "nan is among the densities"),
        ({"densities": ["a"]}, "'a' is among the densities"),
        ({"densities": "a"}, "'a' is among the densities"),
        ({"densities": None}, "None is among the densities"),
        ({"seconds": "a"}, "seconds='a'; give some time"),
        ({"densities": []}, r"densities=\[\]; give at least one"),
        ({"patterns": []}, r"patterns=\[\]; name at least one"),
        ({"patterns": "blok:16"}, r"unknown pattern 'blok:16' \(did you mean 'block:16'\?\)"),
        ({"speedup": math.inf}, "speedup=inf; give a number above 1"),
        ({"speedup": math.nan}, "speedup=nan; give a number above 1"),
        ({"speedup": "2"}, "speedup='2'; give a number above 1"),
        ({"seconds": 0}, "seconds=0; give some time"),
    ],
)
def test_a_proposal_of_nonsense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        cw.plan(nn.Sequential(nn.Linear(64, 64)), torch.ones(1, 64), **{"speedup": 2, **options})


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("2:4", "2:4: no layer can take it; 0: 2:4 has no tiles to store"),
        ("unstructured", "unstructured: no layer can take it; 0: unstructured has no tiles to store"),
        ("block:1024", "block:1024: no layer can take it; 0: .*1024"),
        ("block:8", "block:8: no layer is faster as tiles than dense here"),
    ],
)
def test_a_proposal_says_why_a_pattern_gains_nothing(pass_clock, monkeypatch, pattern, reason):
    monkeypatch.setattr("cutwork.layers.compressed.kernel_name", lambda *_: "cpu-tiles")
    model = three_parts(pass_clock, share=lambda layer: 2.0)
    proposal = cw.plan(model, torch.ones(5, 64), speedup=2, patterns=pattern, densities=0.5)
    assert proposal.patterns is None
    # No layer becomes slower than it is dense.
    assert proposal.speedup == 1
    assert re.search(reason, str(proposal))


def test_a_proposal_without_kernels_says_so(pass_clock, monkeypatch):
    monkeypatch.setattr("cutwork.layers.compressed.kernel_name", lambda *_: "reference")
    model = three_parts(pass_clock, share=lambda layer: 2.0)
    proposal = cw.plan(model, torch.ones(5, 64), speedup=2, densities=0.5)
    assert "block:16: no layer is faster: there are no kernels for these layers here" in str(proposal)


def test_a_prediction_from_a_busy_machine_is_right_and_marked(pass_clock):
    model = three_parts(pass_clock, spread=0.1)
    proposal = cw.plan(model, torch.ones(5, 64), speedup=1.8, patterns="block:8", densities=0.2)
    assert not proposal.is_steady
    assert "block:8  ~1.92x" in str(proposal)


def test_layers_of_a_proposal_that_share_a_weight_are_timed_together(pass_clock):
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    model[2].weight = model[0].weight
    proposal = cw.plan(model, torch.ones(5, 64), speedup=2, patterns="block:8", densities=0.5)
    assert [row.layer for row in proposal.rows] == ["0", "2"]


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 64))
        self.attention = nn.MultiheadAttention(64, 2)

    def forward(self, x):
        x = self.embed(x)
        return self.attention(x, x, x)[0]


def test_a_proposal_measures_for_real_and_leaves_the_model_alone():
    model = SelfAttention()
    before = copy.deepcopy(model.state_dict())
    proposal = cw.plan(model, torch.randn(2, 3, 8, 8), speedup=1.5, patterns=["block:8"], densities=[0.5], seconds=0.01)
    assert {row.layer for row in proposal.rows} == {
        "embed.0",
        "embed.2",
        *(f"attention.{part}_proj" for part in ("q", "k", "v", "out")),
    }
    assert all(row.dense_s > 0 for row in proposal.rows)
    assert '"goal": 1.5' in proposal.to_json()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert type(model.attention) is nn.MultiheadAttention


def test_a_proposal_needs_a_goal_inputs_and_no_forms():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"speedup=0\.5; give a number above 1"):
        cw.plan(model, torch.ones(1, 4), speedup=0.5)
    with pytest.raises(ValueError, match="pass them"):
        cw.plan(model, speedup=2)
    with pytest.raises(ValueError, match="predicted for inference at the model's own precision"):
        cw.plan(model, torch.ones(1, 4), speedup=2, training=True)
    with pytest.raises(ValueError, match="forms are for a model that is sparse"):
        cw.plan(model, torch.ones(1, 4), speedup=2, forms="tiles")


def test_a_proposal_leaves_out_what_sparsify_would_refuse(pass_clock):
    model = three_parts(pass_clock)
    proposal = cw.plan(model, torch.ones(5, 64), speedup=1.5, patterns="block:32", densities=[0.1, 0.05])
    # Of four blocks 0.1 is less than half a block, and of the 3x64 weight, which has two, even more so.
    assert proposal.pattern is None
    assert "too coarse to keep" in str(proposal)


def test_a_gain_that_may_be_chance_is_none_in_a_proposal_either(pass_clock):
    model = three_parts(pass_clock, share=lambda layer: 0.98)
    proposal = cw.plan(model, torch.ones(5, 64), speedup=1.01, patterns="block:8", densities=0.5)
    assert (proposal.pattern, proposal.speedup) == (None, 1)


class Own(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, input):
        return 2 * super().forward(input)


class Mixed(nn.Module):
    """Has layers that can be sparse and some of each kind that cannot."""

    def __init__(self):
        super().__init__()
        self.embedding, self.body, self.more = nn.Embedding(10, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.own, self.other_own = Own(64, 64), Own(64, 64)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(64, 64))
        self.pruned = prune.l1_unstructured(nn.Linear(64, 64), "weight", amount=0.5)
        self.empty = nn.Linear(64, 64)
        self.empty.weight = nn.Parameter(torch.empty(0, 64))
        self.one, self.other = nn.Linear(64, 64), nn.Linear(64, 64)
        self.other.weight = self.one.weight
        self.head = nn.Linear(64, 10)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.more(self.body(self.embedding(tokens)))
        return self.head(self.other(self.one(self.pruned(self.normed(self.other_own(self.own(x)))))))


OPTIONS = {"speedup": 1.5, "patterns": "block:8", "densities": 0.5, "seconds": 0.001}


def test_a_proposal_leaves_dense_what_cannot_be_sparse_and_says_why():
    torch.manual_seed(0)
    model, x = Mixed(), torch.arange(5)
    state = copy.deepcopy(model.state_dict())
    proposal = cw.plan(model, x, **OPTIONS)
    assert [row.layer for row in proposal.rows] == ["body", "more", "one", "other"]
    assert list(proposal.left_out) == ["own", "other_own", "normed", "pruned", "empty", "head"]
    page = str(proposal)
    assert "stays dense: own and 1 other: " in page and "Own is a subclass that may compute something else" in page
    assert "stays dense: head: it shares its weight with embedding (Embedding), which" in page
    assert "stays dense: empty: its weight is empty" in page
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_layers_of_a_proposal_are_chosen_by_globs():
    torch.manual_seed(0)
    model, x = Mixed(), torch.arange(5)

    def chosen(layers):
        return [row.layer for row in cw.plan(model, x, layers=layers, **OPTIONS).rows]

    assert chosen("o*") == chosen(["one", "other"]) == ["one", "other"]
    assert chosen("!o*") == chosen(["*", "!o*"]) == ["body", "more"]
    assert chosen(["!*", "more", "bod?"]) == ["body", "more"]
    # A weight is shared by all who have it.
    assert "one: it shares its weight with other" in str(cw.plan(model, x, layers="!other", **OPTIONS))
    with pytest.raises(ValueError, match=r"^no layer that could be sparse matches '!tail'; they are 'body', "):
        chosen(["*", "!tail"])
    with pytest.raises(ValueError, match=r"^no layer of this model could be made sparse: head: it shares its"):
        chosen("head")
    with pytest.raises(ValueError, match="could be made sparse: it has no dense linear layer"):
        cw.plan(nn.ReLU(), x, **OPTIONS)
    for layers in (5, [5], [], None):
        with pytest.raises(TypeError, match=r"^layers=.*give a glob over layer names or several"):
            chosen(layers)
    with pytest.raises(
        ValueError,
        match="layers says which layers a speedup may make sparse; to choose forms of sparse ones by name, use forms",
    ):
        cw.plan(nn.Sequential(nn.Linear(64, 64)), torch.randn(5, 64), layers="0")


def test_names_of_layers_are_no_globs(pass_clock):
    model = three_parts(pass_clock)
    model = nn.Sequential(OrderedDict([("a[1]", model[0]), ("b", model[1]), ("c", model[2])]))
    proposal = cw.plan(model, torch.ones(5, 64), speedup=1.5, patterns="block:8", densities=0.2)
    assert proposal.patterns is not None
    cw.sparsify(model, proposal.patterns, density=0.2)
    assert model[0].sparsity.density == 0.2


def test_a_layer_that_a_model_wants_dense_stays_dense_in_a_proposal(pass_clock):
    class Reading(nn.Sequential):
        def forward(self, x):
            return super().forward(x.to(self[2]._parameters["weight"].dtype))

    model = Reading(*three_parts(pass_clock))
    proposal = cw.plan(model, torch.ones(5, 64), speedup=1.2, patterns="block:8", densities=0.2)
    assert proposal.patterns == {"*": "dense", "0": "block:8"}
    assert proposal.rows[1].reason == "the model fails with it: KeyError: 'weight'"
