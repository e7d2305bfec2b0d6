"""A model whose weights are no longer the first ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cutwork as cw


def train_on_digits(*, width, epochs):
    digits = cw.load_digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(digits.train_images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(digits.train_images[batch]), digits.train_labels[batch]).backward()
            optimizer.step()
    return model


@pytest.fixture
def trained_on_digits():
    return train_on_digits
