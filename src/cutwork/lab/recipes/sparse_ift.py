"""Sparse-IFT as published: larger models at the dense one's operations, on CIFAR-100 and ImageNet."""

from typing import Any

from cutwork.lab.recipes.recipe import Recipe
from cutwork.lab.recipes.small import TINY
from cutwork.lab.training import Training

CIFAR = Training().having(
    model="resnet18",
    data="cifar100",
    augment="crop,flip",
    optimizer="nesterov",
    lr=0.1,
    weight_decay=5e-4,
    decay_all=True,
    schedule="step",
    milestones=(60.0, 120.0, 160.0),
    gamma=0.2,
    batch=128,
    epochs=200,
)
IMAGENET = Training().having(
    model="resnet18",
    data="imagenet",
    augment="resized-crop,flip",
    workers=16,
    lr=0.256,
    momentum=0.875,
    weight_decay=2**-15,
    schedule="cosine",
    label_smoothing=0.1,
    precision="fp16",
    # Of each of eight processes.
    batch=32,
    epochs=90,
)
SPARSE: dict[str, Any] = {"pattern": "unstructured", "density": 0.25, "method": "rigl", "every": 100}
TWIN: dict[str, Any] = TINY | {"milestones": (2.0,), "workers": 0, "precision": "fp32"}
SPARSE_TWIN: dict[str, Any] = TWIN | {"pattern": "block:8", "every": 5}
# With the accuracy that is published for CIFAR-100 at the best of three sparsities.
MEMBERS = {
    "wide": "80.1 %, beside 77.0 % dense (at the best sparsity)",
    "parallel": "",
    "factorized": "",
    "doped": "",
}

RECIPES = {
    "sparse-ift-dense-cifar100": Recipe("ResNet-18 on CIFAR-100, dense", CIFAR, TWIN, published="77.0 %"),
    **{
        f"sparse-ift-{member}-cifar100": Recipe(
            f"ResNet-18 on CIFAR-100, {member} at 75 %, RigL",
            CIFAR.having(**SPARSE, member=member),
            SPARSE_TWIN,
            published=published,
        )
        for member, published in MEMBERS.items()
    },
    "sparse-ift-wide-factorized-cifar100": Recipe(
        "ResNet-18 on CIFAR-100, wider and of small rank, no masks",
        CIFAR.having(member="wide-factorized", density=0.25),
        TWIN,
    ),
    "sparse-ift-wide-static-cifar100": Recipe(
        "ResNet-18 on CIFAR-100, wide at 75 %, masks that stay",
        CIFAR.having(**SPARSE | {"method": "static", "every": None}, member="wide"),
        SPARSE_TWIN | {"every": None},
    ),
    "sparse-ift-dense-imagenet": Recipe("ResNet-18 on ImageNet, dense", IMAGENET, TWIN, published="70.9 %"),
    "sparse-ift-wide-imagenet": Recipe(
        "ResNet-18 on ImageNet, wide, RigL",
        IMAGENET.having(**SPARSE, member="wide"),
        SPARSE_TWIN,
        published="74.4 % (at the best sparsity)",
    ),
    "sparse-ift-parallel-imagenet": Recipe(
        "ResNet-18 on ImageNet, parallel, RigL", IMAGENET.having(**SPARSE, member="parallel"), SPARSE_TWIN
    ),
    "sparse-ift-wide-resnet34-imagenet": Recipe(
        "ResNet-34 on ImageNet, wide, RigL", IMAGENET.having(**SPARSE, member="wide", model="resnet34"), SPARSE_TWIN
    ),
}
