import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.transforms.drawing import LARGEST_SAMPLE, draw

from . import members


def test_entries_are_those_of_the_layer_by_chance_of_their_own():
    old = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    one, same, other = (draw(old, (8, 16), seed=0, name=name) for name in ("a", "a", "b"))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert {*one.flatten().tolist()} == {1.0, 2.0, 3.0, 4.0}
    assert {*draw(old, (8, 32), seed=0, name="a", with_signs=True).abs().flatten().tolist()} == {1.0, 2.0, 3.0, 4.0}


def test_a_sample_stands_for_all_of_a_large_weight():
    old = torch.arange(4.0 * LARGEST_SAMPLE)
    drawn = draw(old, (10_000,), seed=0, name="a")
    assert drawn.mean().item() == pytest.approx(old.mean().item(), rel=0.02)
    assert drawn.max() > 0.99 * len(old)


@pytest.mark.parametrize("member", ["wide", *members.LINEAR, "wide_factorized"])
def test_all_members_draw_from_the_numbers_of_the_layer(member):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    with torch.no_grad():
        model[2].weight.copy_(torch.randint(1, 4, (512, 512)))
    larger = getattr(cw.transforms, member)(model, 0.1, inputs=torch.rand(1, 20)).model
    drawn = [weight for name, weight in larger.named_parameters() if name.startswith("2") and weight.dim() == 2]
    assert drawn
    for weight in drawn:
        sizes = weight.detach().abs()
        assert {round(size, 3) for size in (sizes / sizes.max() * 3).unique().tolist()} == {1.0, 2.0, 3.0}


@pytest.mark.parametrize("member", ["parallel", "factorized", "doped"])
def test_outputs_vary_as_they_did_though_all_numbers_are_above_zero(member):
    torch.manual_seed(0)
    model, x = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(3))), torch.randn(512, 256)
    with torch.no_grad():
        model[1].weight.abs_()
    larger = getattr(cw.transforms, member)(model, 0.25, inputs=x)
    size, expected = (part(x).detach().square().mean() for part in (larger.model[1], model[1]))
    assert float(size / expected) == pytest.approx(1, rel=0.15)
