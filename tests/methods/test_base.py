import pytest

import cutwork as cw

BAD = [
    (lambda: cw.RigL(every=2.5), ValueError, "whole number"),
    (lambda: cw.RigL(every=100, until=75), ValueError, "never moves a mask: no multiple of 100"),
    (lambda: cw.RigL(until=1), ValueError, "1.0 is the whole run"),
    (lambda: cw.RigL(begin=500, until=100), ValueError, "never moves"),
    (lambda: cw.Gradual(begin=10, until=10), ValueError, "never moves"),
    (lambda: cw.Gradual(begin=-1, until=10), ValueError, "never moves"),
    (lambda: cw.RigL(fraction=0.3), TypeError, r"write cutwork.constant\(0.3\)"),
    (lambda: cw.SRigL(fraction=cw.constant(3.0)), ValueError, "from 0 to 1"),
    (lambda: cw.GraNet(fraction=cw.cosine(0.3, -1)), ValueError, "from 0 to 1"),
    (lambda: cw.RigL(grow="random"), TypeError, "grow='random' is no function"),
    (lambda: cw.STE(keep=None), TypeError, "keep=None is no function"),
    (lambda: cw.Gradual(start_density=5.0), ValueError, r"outside \(0, 1\]"),
    (lambda: cw.Supermask(start_density=0.0, until=5), ValueError, r"outside \(0, 1\]"),
    (lambda: cw.Supermask(weight_bits=1, transform=(1.0, 2.0, 3.0)), ValueError, "a pair, shift and scale"),
    (lambda: cw.Switch("rigl"), TypeError, "pass a method"),
]


@pytest.mark.parametrize(("build", "error", "message"), BAD)
def test_a_method_that_cannot_work_is_refused_when_it_is_written(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_a_short_last_stretch_still_reaches_the_end_of_gradual():
    assert cw.Gradual(every=100, until=50).due(50)


def test_frozen_weights_stay_frozen_under_a_supermask():
    from torch import nn

    model = nn.Sequential(nn.Linear(16, 16))
    model[0].requires_grad_(False)
    cw.sparsify(model, "block:4", density=0.5, method="supermask")
    assert not model[0].weight.requires_grad
