"""Spartan as published: blocks of a vision transformer that are soft at first."""

from cutwork.lab.recipes.recipe import Recipe
from cutwork.lab.recipes.superblock import TINY, VIT

RECIPES = {
    "spartan-vit-b-16": Recipe(
        "ViT-B/16 from scratch, all of the encoder in blocks of 16 at 90 %",
        VIT.having(
            method="spartan",
            pattern="block:16",
            layers="linears",
            repeats=1,
            warmup=10,
            label_smoothing=0.0,
            ema=0.0,
            batch=256,
            epochs=100,
        ),
        TINY | {"pattern": "block:16", "layers": "linears"},
        published="less than a point of top-1 below dense training (ImageNet; there all layers share one ranking)",
    )
}
