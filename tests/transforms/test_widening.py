import copy

import torch
from torch import nn

from cutwork.transforms import wide


def make_mlp():
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def test_the_model_itself_stays_as_it_is():
    model = make_mlp()
    before = copy.deepcopy(model.state_dict())
    larger = wide(model, 0.25, inputs=torch.rand(1, 20))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not {id(each) for each in model.parameters()} & {id(each) for each in larger.model.parameters()}
    assert (model[2].in_features, larger.model[2].in_features) == (64, 128)
