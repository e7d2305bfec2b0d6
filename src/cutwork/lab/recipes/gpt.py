"""A small language model on bytes: dense, and in each way to be sparse."""

from typing import Any

from cutwork.lab.recipes.recipe import Recipe
from cutwork.lab.training import Training

DENSE = Training().having(
    model="gpt:width=256,num_heads=4,num_blocks=4",
    data="text",
    optimizer="adamw",
    lr=1e-3,
    weight_decay=0.1,
    schedule="cosine",
    warmup=0.05,
    clip=1.0,
    batch=32,
    test_batch=64,
    epochs=1,
)
TINY: dict[str, Any] = {
    "model": "gpt:width=64,num_heads=2,num_blocks=2",
    "batch": 16,
    "context": 64,
    "steps": 100,
    "log_every": 20,
}
MOVING: dict[str, Any] = {"pattern": "block:16", "density": 0.2, "method": "rigl", "every": 50, "lr_power": 0.5}

RECIPES = {
    "gpt-dense": Recipe("a small GPT on bytes, dense", DENSE, TINY),
    "gpt-rigl": Recipe("a small GPT on bytes, blocks that move", DENSE.having(**MOVING), TINY | {"every": 10}),
    "gpt-2-4": Recipe(
        "a small GPT on bytes, two of four", DENSE.having(pattern="2:4", method="srste", every=1), TINY | {"every": 1}
    ),
    "gpt-wide": Recipe(
        "a small GPT on bytes, wider at the same operations",
        DENSE.having(**MOVING | {"density": 0.25}, member="wide"),
        TINY | {"every": 10},
    ),
}
