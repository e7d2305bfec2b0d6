"""Recipes: training runs that have names, one file for each system, as functions that return a run's options."""

from cutwork.lab.recipes import gpt, shuffled_block, small, sparse_ift, spartan, superblock, two_four
from cutwork.lab.recipes.recipe import Recipe
from cutwork.lab.training import Training
from cutwork.text import did_you_mean

RECIPES: dict[str, Recipe] = {
    **small.RECIPES,
    **superblock.RECIPES,
    **spartan.RECIPES,
    **two_four.RECIPES,
    **shuffled_block.RECIPES,
    **sparse_ift.RECIPES,
    **gpt.RECIPES,
}


def find_recipe(name: str, *, tiny: bool = False) -> Training:
    """Return the options of the recipe with this name, or those of its twin that runs in a minute on two cores.

    >>> find_recipe("dsb-wrn-22-2-cifar10").sparse.density
    0.1
    """
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}{did_you_mean(name, RECIPES)}; 'cutwork ls recipes' lists them")
    recipe = RECIPES[name]
    return recipe.training.having(**recipe.tiny) if tiny else recipe.training
