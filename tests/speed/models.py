"""A model to plan for, which the tests of this folder share."""

import torch
from torch import nn

import cutwork as cw


def sparse_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    cw.sparsify(model, {"*": "block:8", "4": "unstructured"}, density=0.25)
    return model
