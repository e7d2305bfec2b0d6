import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cutwork as cw
from cutwork.layers.sparse import Sparse, WeightFacts
from cutwork.patterns import parse


class EverySecond(Sparse):
    """A kind of layer that nothing else has heard of: a linear one without every second input, for inference."""

    def __init__(self, dense: nn.Linear):
        super().__init__()
        self.register_buffer("seconds", dense.weight.detach()[:, ::2].clone())
        self.register_buffer("bias", dense.bias.detach().clone())

    def forward(self, x):
        weight = torch.zeros(len(self.seconds), 2 * self.seconds.shape[1])
        weight[:, ::2] = self.seconds
        return F.linear(x, weight, self.bias)

    def describe_weight(self) -> WeightFacts:
        outputs, kept = self.seconds.shape
        return WeightFacts(
            kind="Linear",
            pattern=parse("1:2"),
            shape=(outputs, 2 * kept),
            num_kept=self.seconds.numel(),
            numbers=self.seconds,
            stored_bytes=self.seconds.nbytes,
            kept_bytes=self.seconds.nbytes,
            kernel="every-second",
        )


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    dense = nn.Linear(8, 6)
    with torch.no_grad():
        dense.weight[:, 1::2] = 0
    return nn.Sequential(dense, nn.Linear(6, 2))


def test_a_new_kind_of_layer_is_reported(model):
    model[0] = EverySecond(model[0])
    report = cw.report(model, torch.rand(3, 8))
    row = report.rows[0]
    assert (row.layer, row.kind, row.shape, row.pattern, row.density) == ("0", "Linear", (6, 8), "1:2", 0.5)
    assert (row.parameters, row.kept_parameters, row.bytes, row.kernel) == (
        6 * 8 + 6,
        6 * 4 + 6,
        4 * 30,
        "every-second",
    )
    assert report.total.kept_parameters == 30 + 14


@pytest.mark.parametrize("counting", ["products", "every-operation"])
def test_its_operations_are_counted(model, counting):
    dense = cw.flops(copy.deepcopy(model), torch.rand(3, 8), counting=counting)
    model[0] = EverySecond(model[0])
    sparse = cw.flops(model, torch.rand(3, 8), counting=counting)
    assert sparse.dense == dense.dense
    assert sparse.layers[0].sparse < 0.6 * sparse.layers[0].dense


def test_it_is_measured_beside_the_dense_layer(model):
    dense = copy.deepcopy(model)
    model[0] = EverySecond(model[0])
    comparison = cw.benchmark(model, against=dense, inputs=torch.rand(3, 8), seconds=0.2)
    assert comparison.forms["0"] == "other"
    assert all(row.equal for row in comparison.results.rows)
