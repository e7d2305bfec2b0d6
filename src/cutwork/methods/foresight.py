"""What makes a weight worth keeping before any training, seen in the whole model: SNIP, FORCE, GraSP and SynFlow."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any, final

import torch
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map_only

from cutwork.distributed import average
from cutwork.evaluation import call_of
from cutwork.methods.scores import Score, taylor

# It runs a model and returns the loss, or yields several, as one for each batch, which then add up.
Loss = Callable[[nn.Module], Tensor | Iterable[Tensor]]
Gradients = list[Tensor | None]


@final
@dataclass(frozen=True)
class Foresight:
    """How the weights of a whole model are scored before it trains: an `init` for `sparsify`.

    `look` runs a copy of the model, which `prepare` has made ready, and returns a gradient for each of some weights;
    `score` makes a score of a weight and that. In each of several `rounds` fewer weights are kept and the copy is
    looked at again without the others, which may return or not. With `across_layers` one ranking of all layers decides
    how much each of them keeps.
    """

    name: str
    look: Callable[[nn.Module, Sequence[Tensor]], Gradients]
    score: Score
    prepare: Callable[[nn.Module], Any] = lambda model: None
    rounds: int = 1
    may_return: bool = False
    across_layers: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.rounds, bool) or not isinstance(self.rounds, Integral) or self.rounds < 1:
            raise ValueError(
                f"{self.name}(rounds={self.rounds}): masks become sparser in so many rounds; give a whole number, at "
                "least 1"
            )


def snip(loss: Loss, *, rounds: int = 1, across_layers: bool = True) -> Foresight:
    """Score a weight by how much the loss changes, to first order, without it: SNIP.

    `loss` runs the model that it is given, a copy, on one batch or several, and returns the loss to differentiate. It
    may yield one for each batch instead, so that only one has to fit into memory; they add up.

    Layers share out the density by one ranking of all their units, as in the paper; with `across_layers=False` each
    keeps what `allocation` or `density` gives it. With more `rounds` the density falls in as many steps, each by the
    same factor, and `loss` is called in each: Iterative SNIP.

    >>> from cutwork import sparsify
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> x, y = torch.rand(32, 64), torch.randint(10, (32,))
    >>> loss = lambda model: nn.functional.cross_entropy(model(x), y)
    >>> sparsifier = sparsify(model, {"*": "block:8", "2": "unstructured"}, density=0.2, init=snip(loss))

    Reference: Lee et al., SNIP: Single-shot network pruning based on connection sensitivity, 2019; rounds: de Jorge et
    al., Progressive skeletonization, 2021.
    """
    return Foresight("snip", partial(_differentiate, loss), taylor, rounds=rounds, across_layers=across_layers)


def force(loss: Loss, *, rounds: int = 60, across_layers: bool = True) -> Foresight:
    """Score a weight as `snip` does in many rounds, but let what was left out return: FORCE.

    A weight that is left out is scored by its first value and the gradient that it has while it is zero.

    Reference: de Jorge et al., Progressive skeletonization: trimming more fat from a network at initialization, 2021.
    """
    look = partial(_differentiate, loss)
    return Foresight("force", look, taylor, rounds=rounds, may_return=True, across_layers=across_layers)


def grasp(loss: Loss, *, across_layers: bool = True) -> Foresight:
    """Score a weight by how much less the gradient would do without it, to first order: GraSP.

    What is kept has the largest products of the weight with the Hessian times the gradient; the paper's score is their
    negative, of which it drops the largest. `loss` is called twice and should see the same batches; batches that torch
    draws on the CPU are. The authors divide the outputs by a temperature of 200 in it.

    Reference: Wang et al., Picking winning tickets before training by preserving gradient flow, 2020.
    """
    return Foresight("grasp", partial(_differentiate_flow, loss), _flow, across_layers=across_layers)


def synflow(*inputs: Any, rounds: int = 100, across_layers: bool = True) -> Foresight:
    """Score a weight by the sum of all paths through it: SynFlow, which needs no data.

    Of the inputs only the shapes count: all their numbers become one, but whole numbers, such as tokens, stay. All
    parameters become their absolute values, norms and the like behave as in evaluation, and all is computed in double
    precision, since the sum over all paths of a deep network overflows.

    >>> from cutwork import sparsify
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    >>> sparsifier = sparsify(model, "unstructured", density=0.01, init=synflow(torch.ones(1, 64)))

    Reference: Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow, 2020.
    """
    if not inputs:
        raise ValueError("synflow got no inputs, whose shapes it needs; write synflow(torch.ones(1, 3, 32, 32))")
    look = partial(_differentiate, partial(_add_up_paths, inputs))
    return Foresight("synflow", look, taylor, _make_positive, rounds=rounds, across_layers=across_layers)


def _differentiate(loss: Loss, model: nn.Module, weights: Sequence[Tensor]) -> Gradients:
    """Return the gradient of the loss, averaged over processes; None for a weight that it does not depend on."""
    return _add_up(torch.autograd.grad(value, weights, allow_unused=True) for value in _run(loss, model))


def _differentiate_flow(loss: Loss, model: nn.Module, weights: Sequence[Tensor]) -> Gradients:
    """Return the Hessian of the loss times its gradient: half the gradient of the square of the gradient."""
    # Both passes meet the same chance.
    with torch.random.fork_rng(devices=()):
        gradients = _differentiate(loss, model, weights)

    def curvatures() -> Iterator[Sequence[Tensor | None]]:
        for value in _run(loss, model):
            slopes = torch.autograd.grad(value, weights, create_graph=True, allow_unused=True)
            pairs = zip(slopes, gradients, strict=True)
            products = [(s * g).sum() for s, g in pairs if s is not None and g is not None]
            yield torch.autograd.grad(sum(products), weights, allow_unused=True)  # pyrefly: ignore

    # The fast kernels of attention have no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        found = _add_up(curvatures())
    # Where the loss is linear in a weight there is none to find.
    return [
        torch.zeros_like(gradient) if each is None and gradient is not None else each
        for each, gradient in zip(found, gradients, strict=True)
    ]


def _flow(weight: Tensor, grad: Tensor | None = None, generator: Generator | None = None) -> Tensor:
    """Score a weight by what it adds to the square of the gradient."""
    assert grad is not None
    return weight * grad


def _add_up(parts: Iterable[Sequence[Tensor | None]]) -> Gradients:
    total: Gradients | None = None
    for part in parts:
        if total is None:
            total = list(part)
            continue
        pairs = zip(total, part, strict=True)
        total = [one if other is None else other if one is None else one + other for one, other in pairs]
    if total is None:
        raise ValueError("the loss for first masks yields nothing; let it yield the loss of at least one batch")
    return [None if each is None else average(each.detach().clone()) for each in total]


def _run(loss: Loss, model: nn.Module) -> Iterator[Tensor]:
    given = loss(model)
    if not isinstance(given, Tensor | Iterable):
        raise TypeError(f"the loss for first masks returns a tensor, or yields tensors; got {type(given).__name__}")
    for value in (given,) if isinstance(given, Tensor) else given:
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"one of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"the loss for first masks is a tensor of one number; got {got}; add it up")
        if not value.requires_grad:
            raise ValueError(
                "the loss for first masks does not depend on the weights of the model that it was given; call that "
                "model in it, not another one, and not under torch.no_grad()"
            )
        yield value


def _add_up_paths(inputs: Sequence[Any], model: nn.Module) -> Tensor:
    ones = tree_map_only(Tensor, _to_ones, inputs)
    outputs = [each for each in tree_leaves(call_of(model, ones)(model)) if isinstance(each, Tensor)]
    return torch.stack([each.sum() for each in outputs if each.is_floating_point()]).sum()


def _to_ones(given: Tensor) -> Tensor:
    return torch.ones_like(given, dtype=torch.float64) if given.is_floating_point() else given


@torch.no_grad()
def _make_positive(model: nn.Module) -> None:
    model.eval().double()
    for parameter in model.parameters():
        parameter.abs_()
