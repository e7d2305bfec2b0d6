"""Every recipe can be built, and its twin has what the recipe is about."""

import math

import pytest

from cutwork.lab.building import build_model, make_method, make_sparse
from cutwork.lab.loop import train
from cutwork.lab.opening import open_feed
from cutwork.lab.processes import Processes
from cutwork.lab.recipes import RECIPES, find_recipe
from cutwork.lab.training import Training
from cutwork.patterns import parse


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("tiny", [False, True])
def test_a_recipe_has_a_method_a_pattern_and_a_text_form(name, tiny):
    training = find_recipe(name, tiny=tiny)
    if training.sparse.pattern != "dense":
        parse(training.sparse.pattern)
        make_method(training.sparse)
    assert Training.from_json(training.to_json()) == training


@pytest.mark.parametrize("name", RECIPES)
def test_a_twin_is_sparse_by_the_same_method_and_member(name):
    whole, twin = find_recipe(name).sparse, find_recipe(name, tiny=True).sparse
    assert (twin.method, twin.member, twin.dense_from) == (whole.method, whole.member, whole.dense_from)
    assert (twin.pattern == "dense") == (whole.pattern == "dense")


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("small-") or "wrn-22-2" in name])
def test_the_whole_model_of_a_small_recipe_can_be_made_sparse(name):
    training, place = find_recipe(name), Processes.alone("cpu")
    shape = "1x28x28:10" if training.reading.data == "fashion-mnist" else "3x32x32:10"
    plain = training.having(data=f"fake:{shape}", augment="", download=False, batch=1)
    model, larger = build_model(plain, open_feed(plain, place), place.device)
    sparsifier = make_sparse(model, plain, 10_000, larger)
    assert (sparsifier is None) == (training.sparse.pattern == "dense")


# One of each kind is enough to see that a change broke nothing.
FEW = ("small-dsb", "superblock-vit-b-16", "two-four-vit-b-16-70-30", "rigl-wrn-22-2-cifar10", "gpt-rigl")


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.exhaustive) for name in RECIPES]
)
def test_a_twin_trains(name, tmp_path):
    twin = find_recipe(name, tiny=True)
    # Where masks move, they must at least once.
    summary = train(twin.having(steps=2 * (twin.sparse.every or 5)), tmp_path / "run")
    assert math.isfinite(summary["test_loss"])
    assert (summary["density"] < 1) == (twin.sparse.pattern != "dense" and twin.sparse.dense_from is None)


def test_a_typing_error_in_a_recipe_names_the_near_one():
    with pytest.raises(ValueError, match="no recipe 'smal-rigl' \\(did you mean 'small-rigl'"):
        find_recipe("smal-rigl")
