"""What stands after a sparse layer may write into its output, in every step of every method."""

import pytest
import torch
from torch import nn

import cutwork as cw

METHODS = {
    "static": cw.Static(),
    "set": cw.set_(every=2, until=9),
    "rigl": cw.RigL(every=2, until=9),
    "rigl by estimate": cw.RigL(every=2, until=9, estimate=True),
    "srste": cw.STE(every=2, decay=1e-3),
    "supermask": cw.Supermask(),
}
COMPRESSED = ["static", "set", "rigl", "rigl by estimate"]


class Residual(nn.Module):
    """Convolutions and linear layers whose outputs are activated and added to, in place or not."""

    def __init__(self, *, in_place):
        super().__init__()
        self.in_place = in_place
        self.activate = nn.ReLU(inplace=in_place)
        self.first, self.pointwise = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.wide, self.square = nn.Linear(8 * 16, 24), nn.Linear(24, 24)

    def add(self, y, x):
        if not self.in_place:
            return y + x
        y += x
        return y

    def forward(self, x):
        x = self.activate(self.first(x))
        y = self.activate(self.add(self.pointwise(x), x))
        y = self.activate(self.wide(y.flatten(1))).unsqueeze(1)
        return self.add(self.square(y), y)


def trained(method, storage, *, in_place, compiler=None):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Residual(in_place=in_place)
    sparsifier = cw.sparsify(model, "block:4", density=0.4, method=METHODS[method], storage=storage, steps=9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sparsifier.attach(optimizer)
    run = torch.compile(model, backend=compiler, fullgraph=True) if compiler else model
    for step in range(5):
        optimizer.zero_grad()
        x = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(step))
        run(x).square().mean().backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize(
    ("method", "storage"),
    [(method, "dense") for method in METHODS] + [(method, "compressed") for method in COMPRESSED],
)
def test_training_in_place_is_training(method, storage):
    expected = trained(method, storage, in_place=False)
    assert torch.equal(trained(method, storage, in_place=True), expected)


@pytest.mark.slow
# Dynamo makes one while it traces any autograd function.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("method", ["rigl", "rigl by estimate"])
@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_so_it_is_in_compiled_code(method, storage):
    expected = trained(method, storage, in_place=False)
    torch.testing.assert_close(trained(method, storage, in_place=True, compiler="aot_eager"), expected)


def test_a_move_that_grows_at_random_has_nothing_to_listen_for():
    model = nn.Sequential(nn.Linear(16, 16))
    sparsifier = cw.sparsify(model, "block:4", density=0.5, method=cw.set_(every=1, until=9), storage="compressed")
    sparsifier.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    assert model[0].sparsity.listener is None and not model[0].sparsity.ear.is_open


@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_layers_take_their_input_by_name(storage):
    model = nn.ModuleList([nn.Linear(16, 16), nn.Conv2d(16, 16, 1)])
    cw.sparsify(model, "block:4", density=0.5, storage=storage)
    x = torch.randn(2, 16)
    assert torch.equal(model[0](input=x), model[0](x))
    image = x[:, :, None, None]
    assert torch.equal(model[1](input=image), model[1](image))
