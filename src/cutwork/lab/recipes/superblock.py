"""SuperBlock as published: vision transformers whose blocks are chosen by learned scores."""

from typing import Any

from cutwork.lab.recipes.recipe import Recipe
from cutwork.lab.training import Training

VIT = Training().having(
    model="torchvision:vit_b_16",
    data="imagenet",
    augment="resized-crop,flip,randaugment,mixup:0.2,cutmix:1.0",
    repeats=3,
    workers=16,
    pattern="block:32-taps",
    layers="mlp",
    density=0.1,
    method="supermask",
    optimizer="adamw",
    lr=3e-3,
    weight_decay=0.3,
    schedule="cosine",
    warmup=30,
    warmup_from=0.033,
    clip=1.0,
    label_smoothing=0.11,
    precision="fp16",
    ema=0.99998,
    # Of each of eight processes.
    batch=512,
    epochs=300,
)
FINE: dict[str, Any] = {"epochs": 15, "lr": 3e-4, "warmup": 1, "weight_decay": 0.05}
TINY: dict[str, Any] = {
    "model": "vit:patch=2,width=64,num_blocks=2",
    "data": "digits",
    "augment": "",
    "repeats": 1,
    "workers": 0,
    "batch": 64,
    "epochs": 10,
    "lr": 3e-3,
    "warmup": 1,
    "precision": "fp32",
    "ema": 0.0,
    "log_every": 10,
    "pattern": "block:16",
    "weight_decay": 0.01,
}

RECIPES = {
    "superblock-vit-b-16": Recipe(
        "ViT-B/16 from scratch, MLP in blocks of 32 at 90 %",
        VIT,
        TINY,
        published="76.09 % top-1 at 90 %, 77.64 % at 80 %, 78.39 % dense (ImageNet with faces blurred)",
    ),
    "superblock-vit-b-16-80": Recipe("the same at 80 %", VIT.having(density=0.2), TINY | {"density": 0.2}),
    "superblock-vit-b-16-attention": Recipe(
        "ViT-B/16, MLP and attention", VIT.having(layers="linears", density=0.2), TINY | {"layers": "linears"}
    ),
    "superblock-vit-b-16-fine-tuned": Recipe(
        "ViT-B/16 from trained weights", VIT.having(model="torchvision:vit_b_16:weights=DEFAULT", **FINE), TINY
    ),
    "superblock-vit-h-14": Recipe(
        "ViT-H/14 from trained weights, blocks of 64 at 90 %",
        VIT.having(
            model="torchvision:vit_h_14:weights=IMAGENET1K_SWAG_LINEAR_V1",
            pattern="block:64",
            **FINE,
        ),
        TINY,
        published="78.21 % top-1 at 90 %, 89.29 % dense (both with one form of the weights)",
    ),
}
