import pytest
import torch
from torch import nn

import cutwork as cw

from .runs import (
    METHODS,
    OPTIMIZERS,
    Attends,
    bits,
    build,
    everything,
    make_sparse,
    mlp,
    refuses,
    rewrite,
    train,
    without,
)


def test_another_optimizer_is_refused(saved):
    model = build(seed=1)
    sparsifier, optimizer = make_sparse(model, track=True)
    sparsifier.detach()
    refuses("holds AdamW; got SGD; give the same", saved, model, None, OPTIMIZERS["sgd"](model.parameters()))
    parameters = list(model.parameters())
    for given, words in {
        "fewer": (parameters[:-1], "first the end where that had 2.bias"),
        "order": (parameters[::-1], "first 2.bias where that had 0.weight"),
        "foreign": ([*parameters[:-1], nn.Parameter(torch.ones(8))], "first a parameter of another model where that"),
        "groups": (
            [{"params": parameters[:2]}, {"params": parameters[2:]}],
            "first the begin of a group where that had 2.weight",
        ),
    }.values():
        refuses(words, saved, model, None, OPTIMIZERS["adamw"](given))
    cw.load(saved, model, optimizer=optimizer)
    cw.save(model, saved)
    refuses("holds no optimizer; got AdamW", saved, model, None, optimizer)


def test_an_optimizer_made_before_its_layers_were_sparse_is_refused(path):
    for make, method in ((mlp, "supermask"), (Attends, "rigl")):
        model = build(make)
        _, optimizer = make_sparse(model, method)
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        cw.save(model, path, optimizer=optimizer)
        dense = build(make)
        refuses("after their layers are sparse", path, dense, None, OPTIMIZERS["adamw"](dense.parameters()))


def test_an_optimizer_resumes_without_a_sparsifier_where_masks_rest(path):
    model = build()
    cw.sparsify(model, "block:2", density=0.5)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    train(model, optimizer, 0, 2)
    cw.save(model, path, optimizer=optimizer)
    other = build(seed=1)
    resumed = OPTIMIZERS["sgd"](other.parameters())
    cw.load(path, other, optimizer=resumed)
    assert everything(other, resumed) == everything(model, optimizer)


class Stubborn(torch.optim.SGD):
    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        if self.param_groups[0]["momentum"] == 0.5:
            raise RuntimeError("I will not")


def test_an_optimizer_that_refuses_its_state_changes_nothing(path):
    model = build()
    sparsifier = cw.sparsify(model, "block:2", density=0.5, method=METHODS["rigl"])
    optimizers = [torch.optim.SGD([model[0].weight], 0.1), Stubborn([model[2].weight], 0.1, momentum=0.5)]
    model[0].bias.requires_grad_(False), model[2].bias.requires_grad_(False)
    sparsifier.attach(*optimizers)
    for _ in range(3):
        model(torch.randn(2, 8)).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    cw.save(model, path, sparsifier=sparsifier, optimizer=optimizers)
    other = build(seed=1)
    again = cw.sparsify(other, "block:2", density=0.5, method=METHODS["rigl"])
    fresh = [torch.optim.SGD([other[0].weight], 0.1), Stubborn([other[2].weight], 0.1)]
    again.attach(*fresh)
    refuses(r"Stubborn refuses the state that was saved: RuntimeError\('I will not'\)", path, other, again, fresh)
    assert not any(optimizer.state for optimizer in fresh)


def test_an_optimizer_of_another_origin_keeps_what_it_likes(path):
    class Whitens(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter]["sum"] = torch.ones(3, 3)

    model = build()
    optimizer = Whitens(model.parameters(), lr=0.1)
    model(torch.randn(2, 8)).sum().backward()
    optimizer.step()
    cw.save(model, path, optimizer=optimizer)
    other = build(seed=1)
    again = Whitens(other.parameters(), lr=0.1)
    cw.load(path, other, optimizer=again)
    assert bits(again.state_dict()) == bits(optimizer.state_dict())


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "lbfgs"])
def test_every_optimizer_of_torch_says_which_settings_it_cannot_do_without(path, optimizer):
    model = build()
    built = OPTIMIZERS[optimizer](model.parameters())
    train(model, built, 0, 2)
    cw.save(model, path, optimizer=built)
    rewrite(path, without("optimizers", 0, "rest", "param_groups", 0, "lr"))
    other = build(seed=1)
    refuses(
        "can take no step with the settings that were saved",
        path,
        other,
        None,
        OPTIMIZERS[optimizer](other.parameters()),
    )
