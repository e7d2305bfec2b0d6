"""Runs on small images that are at hand, for every way to be sparse: what to begin with."""

from typing import Any

from cutwork.lab.recipes.recipe import Recipe
from cutwork.lab.training import Training

BASE = Training().having(
    model="wrn-16-2:dropout=0.0",
    data="fashion-mnist",
    augment="crop,flip",
    optimizer="nesterov",
    lr=0.1,
    weight_decay=5e-4,
    batch=128,
    epochs=10,
    warmup=0.5,
)
# What is sparse has higher rates, by the square root of its density.
# The shortcuts are too small for a tenth of blocks of 16, and stay dense.
SPARSE: dict[str, Any] = {"density": 0.1, "skip": True, "lr_power": 0.5, "every": 100}
TINY: dict[str, Any] = {
    "model": "resnet8:width=16,stem=pooled",
    "data": "digits",
    "augment": "",
    "batch": 64,
    "epochs": 3,
    "log_every": 10,
}
TINY_MOVES: dict[str, Any] = {**TINY, "pattern": "block:8", "every": 5}

WAYS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "dense": ("nothing is sparse", {}, TINY),
    "static": (
        "blocks that stay",
        {**SPARSE, "pattern": "block:16", "method": "static", "every": None},
        TINY | {"pattern": "block:8"},
    ),
    "set": ("blocks that move by chance (SET)", {**SPARSE, "pattern": "block:16", "method": "set"}, TINY_MOVES),
    "rigl": ("blocks that move by gradients (RigL)", {**SPARSE, "pattern": "block:16", "method": "rigl"}, TINY_MOVES),
    "dsb": (
        "shuffled blocks that move (DSB)",
        {**SPARSE, "pattern": "shuffled:16", "method": "dsb"},
        TINY_MOVES | {"pattern": "shuffled:8"},
    ),
    "ssb": (
        "shuffled blocks that stay (SSB)",
        {**SPARSE, "pattern": "shuffled:16", "method": "ssb", "every": None},
        TINY | {"pattern": "shuffled:8"},
    ),
    "srigl": (
        "rows of equally many weights (SRigL)",
        {**SPARSE, "pattern": "unstructured", "method": "srigl"},
        TINY | {"every": 5},
    ),
    "gradual": (
        "trained dense at first and pruned on the way",
        {**SPARSE, "pattern": "block:16", "method": "gradual", "lr_power": 0.0},
        TINY_MOVES,
    ),
    "granet": (
        "pruned on the way, and regrown",
        {**SPARSE, "pattern": "block:16", "method": "granet"},
        TINY_MOVES,
    ),
    "supermask": (
        "blocks chosen by learned scores (SuperBlock)",
        {**SPARSE, "pattern": "block:16", "method": "supermask", "every": 1, "lr_power": 0.0},
        TINY | {"pattern": "block:8", "every": 1},
    ),
    "spartan": (
        "blocks that are soft at first, by Spartan",
        {**SPARSE, "pattern": "block:16", "method": "spartan", "every": 1, "lr_power": 0.0},
        TINY | {"pattern": "block:8", "every": 1},
    ),
    "2-4": (
        "two of four, by SR-STE",
        {"pattern": "2:4", "method": "srste", "every": 1},
        TINY,
    ),
}

RECIPES = {
    f"small-{name}": Recipe(
        about=f"a wide ResNet on Fashion-MNIST, {about}", training=BASE.having(**options), tiny=tiny
    )
    for name, (about, options, tiny) in WAYS.items()
}
