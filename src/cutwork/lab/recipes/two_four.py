"""Two weights of four: sparse for most of the run, dense in the end."""

from typing import Any

from cutwork.lab.recipes.recipe import Recipe
from cutwork.lab.recipes.superblock import TINY, VIT

TWO_FOUR = VIT.having(pattern="2:4", density=None, method="srste", every=1, ema=0.0)
TWIN: dict[str, Any] = TINY | {"pattern": "2:4", "density": None}

RECIPES = {
    "two-four-vit-b-16": Recipe("ViT-B/16, MLP in 2:4", TWO_FOUR, TWIN),
    "two-four-vit-b-16-70-30": Recipe(
        "ViT-B/16, 2:4 for 70 % of the run, dense for the rest", TWO_FOUR.having(dense_from=0.7), TWIN
    ),
    "two-four-vit-b-16-last-sixth": Recipe(
        "ViT-B/16, 2:4 and dense in the last sixth", TWO_FOUR.having(dense_from=5 / 6), TWIN
    ),
}
