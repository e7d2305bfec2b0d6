"""Every recipe can be built, and its twin has what the recipe is about."""

import pytest

from cutwork.lab.building import make_method
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


def test_a_typing_error_in_a_recipe_names_the_near_one():
    with pytest.raises(ValueError, match="no recipe 'smal-rigl' \\(did you mean 'small-rigl'"):
        find_recipe("smal-rigl")
