"""Shuffled blocks as published: DSB, SSB, and RigL beside them, on CIFAR, Tiny-ImageNet and ImageNet."""

from typing import Any

from cutwork.lab.recipes.recipe import Recipe
from cutwork.lab.recipes.small import TINY
from cutwork.lab.training import Training

CIFAR = Training().having(
    model="wrn-22-2",
    data="cifar10",
    augment="crop,flip",
    pattern="shuffled:16",
    layers="dsb",
    density=0.1,
    method="dsb",
    every=100,
    # The fraction falls over 75 000 steps, and masks move in the first half of these.
    until=37_501,
    lr=0.1,
    weight_decay=1e-4,
    decay_all=True,
    schedule="step",
    milestones=(80.0, 120.0),
    batch=128,
    epochs=160,
)
IMAGENET = CIFAR.having(
    model="resnet50",
    data="imagenet",
    augment="resized-crop,flip",
    workers=16,
    density=0.5,
    every=800,
    until=400_000,
    milestones=(30.0, 70.0, 90.0),
    warmup=5,
    batch=256,
    epochs=105,
    label_smoothing=0.1,
    smoothing_form="dsb",
)
TWIN: dict[str, Any] = TINY | {
    "layers": "all",
    "pattern": "shuffled:8",
    "every": 5,
    "until": 0.75,
    "milestones": (2.0,),
    "warmup": 0.0,
    "workers": 0,
}
STAYS: dict[str, Any] = {"method": "ssb", "every": None, "until": None}
RIGL: dict[str, Any] = {"method": "rigl", "pattern": "unstructured", "layers": "all", "ends": True}

RECIPES = {
    "dsb-wrn-22-2-cifar10": Recipe("DSB, WRN-22-2 on CIFAR-10 at 90 %", CIFAR, TWIN),
    "dsb-vgg-d-cifar100": Recipe("DSB, VGG-D on CIFAR-100 at 90 %", CIFAR.having(model="vgg-d", data="cifar100"), TWIN),
    "ssb-wrn-22-2-cifar10": Recipe("SSB, whose blocks stay", CIFAR.having(**STAYS), TWIN | STAYS),
    "rigl-wrn-22-2-cifar10": Recipe(
        "RigL with the same options",
        CIFAR.having(**RIGL, allocation="erk"),
        TWIN | RIGL,
    ),
    "dsb-resnet50-imagenet": Recipe(
        "DSB, ResNet-50 on ImageNet at 50 %",
        IMAGENET,
        TWIN,
        published="76.33 % at 50 %, 74.04 % at 75 % (of single runs, printed beside SRigL)",
    ),
    "dsb-resnet50-tiny-imagenet": Recipe(
        "DSB, ResNet-50 on Tiny-ImageNet at 75 %",
        IMAGENET.having(data="tiny-imagenet", augment="rotate:20,flip", density=0.25),
        TWIN,
    ),
}
