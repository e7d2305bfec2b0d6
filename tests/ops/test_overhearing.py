import gc

import pytest
import torch

from cutwork.ops import overhearing
from cutwork.ops.activations import ACTIVATIONS, activate
from cutwork.ops.overhearing import Listener, overhear, tell


class Ear(Listener):
    def __init__(self):
        super().__init__()
        self.heard = []

    def overhear(self, x, dy, geometry):
        self.heard.append((x, dy, geometry))


def product():
    return torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0]])


@pytest.mark.parametrize("compiled", [False, True], ids=["directly", "as an operator"])
@pytest.mark.parametrize("before", ACTIVATIONS)
def test_an_open_listener_hears_what_the_product_multiplied(before, compiled, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiled)
    one, other = Ear(), Ear()
    one.is_open = other.is_open = True
    x, dy = product()
    tell(one.ear, x, dy, before=before, geometry=([3, 2], [1, 1], 4))
    ((read, gradient, geometry),) = one.heard
    assert torch.equal(read, activate(before, x))
    assert torch.equal(gradient, dy)
    assert list(geometry) == [3, 2, 1, 1, 4]
    assert not other.heard


@pytest.mark.parametrize("compiled", [False, True], ids=["directly", "as an operator"])
def test_nobody_hears_what_nobody_listens_to(compiled, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiled)
    closed = Ear()
    tell(closed.ear, *product())
    tell(None, *product())
    assert not closed.heard


@pytest.mark.parametrize("compiled", [False, True], ids=["directly", "as an operator"])
def test_what_was_heard_stays_when_the_next_batch_is_written_into_the_input(compiled, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiled)
    ear = Ear()
    ear.is_open = True
    x, dy = product()
    tell(ear.ear, x, dy)
    x.zero_()
    assert torch.equal(ear.heard[0][0], product()[0])


def test_no_graph_is_kept_alive():
    ear = Ear()
    ear.is_open = True
    x, dy = (tensor.requires_grad_() * 1 for tensor in product())
    tell(ear.ear, x, dy, before="gelu")
    assert not any(tensor.requires_grad for tensor in ear.heard[0][:2])


def test_a_listener_that_is_gone_hears_no_more_and_its_number_is_not_given_again():
    ear = Ear()
    number = ear.ear.clone()
    del ear
    gc.collect()
    assert int(number) not in overhearing._LISTENERS
    tell(number, *product())
    assert int(Ear().ear) > int(number)


def test_the_operator_keeps_the_rules_of_torch_library():
    ear = Ear()
    torch.library.opcheck(overhear, (ear.ear, *product(), [3, 3]))
