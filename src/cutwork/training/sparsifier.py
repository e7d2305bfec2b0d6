"""The sparsifier: what moves the masks of a model while an optimizer trains it."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain, count
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cutwork.layers.swap import SparseLayer
from cutwork.methods import Method, View, generator_for
from cutwork.sparsity.birth import find_sizes
from cutwork.training.attachment import (
    check_attachable,
    check_mask,
    check_parameters,
    check_sizes,
    check_state,
    check_used,
    find_in_average,
    hide_gradients,
    holds,
    is_skipping,
    learning_rates,
    unwrap,
)
from cutwork.training.attendance import expect_attach, stop_expecting
from cutwork.training.drop_connect import DropConnect
from cutwork.training.exploration import Exploration

logger = logging.getLogger(__name__)

STATE_KEY = "cutwork"


@final
class Sparsifier:
    """Moves the masks of some layers of a model as their method says; made by `sparsify`.

    Every decision is a function of the weights, the gradient averaged over all processes, the step, the seed and the
    name of the layer, so that processes agree without a word. Its state is the number of steps done.
    """

    def __init__(
        self,
        layers: Mapping[str, SparseLayer],
        method: Method,
        *,
        seed: int = 0,
        track: bool = False,
        skipped: Mapping[str, str] | None = None,
        drop_connect: DropConnect | None = None,
    ) -> None:
        self.layers = dict(layers)
        # Which layers were to be sparse and could not, and why.
        self.skipped = dict(skipped or {})
        self.method = method
        self.drop_connect = drop_connect
        self.steps_done = 0
        self._seed = seed
        self._optimizers: list[Optimizer] = []
        self._owners: dict[str, Optimizer | None] = {}
        self._trained: dict[str, nn.Parameter] = {}
        self._handles: list[Any] = []
        self._waiting: set[int] = set()
        self._gradients: dict[str, Any] = {}
        # What an optimizer must not see in a step whose move stands in for the update.
        self._hidden: dict[int, dict[Tensor, Tensor]] = {}
        self.state_key = f"{STATE_KEY}:{next(iter(self.layers))}"
        self._is_first_step = True
        self._averages: list[dict[str, SparseLayer]] = []
        self._frozen: set[str] = set()
        if method.moves or drop_connect is not None:
            expect_attach(*next(iter(self.layers.items())))
        self._exploration = (
            {name: Exploration.begin(layer.sparsity.mask) for name, layer in self.layers.items()} if track else None
        )

    def attach(self, *optimizers: Optimizer, hooks: bool = True) -> None:
        """Follow the steps of the optimizers that train the model, several where its parameters are divided.

        Only steps that really update count: one that a gradient scaler skips does not, nor one with learning rate and
        gradient zero. The number of steps travels in the optimizers' state dicts, so that a framework that saves and
        restores these resumes the masks too. With `hooks=False` call `step` after every update instead. What wraps an
        optimizer, as accelerate does, may be given too. The mask of a layer that is frozen does not move.
        """
        if self._optimizers:
            raise ValueError("this sparsifier is attached already; detach() it first")
        optimizers = tuple(map(unwrap, optimizers))
        check_attachable(self.layers, self.method, optimizers, hooks=hooks)
        self.state_key = self._free_key(optimizers)
        # A state dict that was loaded before this has left the steps here.
        self.steps_done = self.steps_done or int(optimizers[0].param_groups[0].get(self.state_key, 0))
        self._is_first_step = True
        for layer in self.layers.values():
            stop_expecting(layer)
            layer.sparsity.follow(needs_gradient=self.method.needs_gradient)
        self._optimizers = list(optimizers)
        self._owners = {name: self._owner(layer) for name, layer in self.layers.items()}
        self._trained = {name: layer.trained for name, layer in self.layers.items()}
        for optimizer in optimizers if hooks else ():
            self._handles += [
                optimizer.register_step_pre_hook(self._before_update),
                optimizer.register_step_post_hook(self._after_update),
                optimizer.register_state_dict_post_hook(self._add_state),
                optimizer.register_load_state_dict_pre_hook(self._take_state),
                optimizer.register_load_state_dict_post_hook(self._take_step),
            ]
        self._waiting = {id(optimizer) for optimizer in optimizers}
        self._prepare()

    def detach(self) -> None:
        """Let go of the optimizers; masks move no more until the next `attach`."""
        for handle in self._handles:
            handle.remove()
        for optimizer in self._optimizers:
            optimizer.param_groups[0].pop(self.state_key, None)
        self._handles, self._optimizers = [], []
        for layer in self.layers.values():
            if isinstance(layer, SparseLayer):
                layer.sparsity.release(layer.trained)

    def take_along(self, average: nn.Module) -> None:
        """Move the masks of an average of the model, such as `AveragedModel(model)`, whenever those of the model move.

        In compressed storage an average needs that, since its values are weights of the places that the mask names.
        Call it again for a run that is resumed; an average that masks have left behind first gets them by
        `copy_masks`.

        >>> from torch.optim.swa_utils import AveragedModel
        >>> from cutwork import sparsify
        >>> model = nn.Sequential(nn.Linear(64, 64))
        >>> sparsifier = sparsify(model, "block:16", density=0.25, method="set", steps=1000, storage="compressed")
        >>> average = AveragedModel(model)
        >>> sparsifier.take_along(average)
        """
        self._averages.append(find_in_average(self.layers, average))

    @torch.no_grad()
    def step(self) -> None:
        """Count one update of the weights, and move the masks if it is due. The hooks of `attach` call this."""
        if not self._optimizers:
            raise ValueError(
                "this sparsifier follows no optimizer; call attach(optimizer) first, because what optimizers remember "
                "moves along with the masks"
            )
        if not self._handles:
            check_parameters(self.layers, self._trained)
        for optimizer in () if self._gradients else self._optimizers:
            self._ask_for_gradients(optimizer, loss_scale=1.0)
        for layer in self.layers.values():
            layer.sparsity.after_update(layer.trained)
        if self._is_first_step:
            for name, layer in self.layers.items():
                check_state(name, layer, self._optimizers)
            self._is_first_step = False
        if self.method.due(self.steps_done + 1):
            self._move_all(self.steps_done + 1)
        self.steps_done += 1
        self._gradients.clear()
        self._prepare()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs besides the model: the steps done, and the exploration if it is tracked."""
        state: dict[str, Any] = {"steps_done": self.steps_done}
        if self._exploration is not None:
            state["exploration"] = {name: seen.state_dict() for name, seen in self._exploration.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a run stopped; load the model's state dict too, which holds the masks."""
        unknown = set(state) - {"steps_done", "exploration"}
        if "steps_done" not in state or unknown:
            raise ValueError(f"this is no state of a sparsifier: it holds {sorted(state)}, expected 'steps_done'")
        if self._exploration is not None:
            if set(state.get("exploration", {})) != set(self._exploration):
                raise ValueError("the state was saved by a run with other layers or without track=True; set it alike")
            devices = {name: layer.trained.device for name, layer in self.layers.items()}
            self._exploration = {
                name: Exploration.from_state_dict(seen, devices[name]) for name, seen in state["exploration"].items()
            }
        self.steps_done = int(state["steps_done"])
        self._prepare()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the optimizers out of a copy, which must be attached anew: an optimizer does not copy its hooks."""
        lists = ("_optimizers", "_handles", "_averages")
        tables = ("_owners", "_trained", "_gradients", "_hidden")
        fresh = {name: [] for name in lists} | {name: {} for name in tables}
        return {**vars(self), **fresh, "_waiting": set()}

    @property
    def exploration(self) -> dict[str, Exploration]:
        """Return, for each layer, which masks have been visited; needs `track=True`."""
        if self._exploration is None:
            raise ValueError("nothing was tracked; pass track=True to sparsify()")
        return self._exploration

    def __repr__(self) -> str:
        """Describe what it does, how far it is and whether it follows an optimizer."""
        followed = ", ".join(type(optimizer).__name__ for optimizer in self._optimizers)
        state = f"attached to {followed}" if followed else "not attached"
        return f"Sparsifier({self.method}, {len(self.layers)} layers, {self.steps_done} steps done, {state})"

    def _free_key(self, optimizers: tuple[Optimizer, ...]) -> str:
        """Return the key for the state in the optimizers' state dicts, which another sparsifier may use too."""
        hooks = [hook for optimizer in optimizers for hook in optimizer._optimizer_state_dict_post_hooks.values()]
        owners = [getattr(hook, "__self__", None) for hook in hooks]
        taken = {owner.state_key for owner in owners if isinstance(owner, Sparsifier)}
        base = f"{STATE_KEY}:{next(iter(self.layers))}"
        return next(key for key in chain([base], (f"{base}#{number}" for number in count(2))) if key not in taken)

    def _before_update(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._take_gradients(optimizer)
            return None

        def then_take_gradients() -> Any:
            loss = closure()
            self._take_gradients(optimizer)
            return loss

        # Some frameworks run forward and backward inside the step: only after that is there a gradient.
        if len(args) > 1:
            return (args[0], then_take_gradients, *args[2:]), kwargs
        return args, {**kwargs, "closure": then_take_gradients}

    @torch.no_grad()
    def _take_gradients(self, optimizer: Optimizer) -> None:
        if not all(isinstance(layer, SparseLayer) for layer in self.layers.values()):
            raise ValueError(
                "the model was baked while this sparsifier followed its optimizer; detach() it, or bake a copy"
            )
        check_parameters(self.layers, self._trained)
        if is_skipping(optimizer):
            return
        check_sizes(self.layers, self._optimizers)
        if self._is_first_step:
            check_used(self.layers)
        scale = getattr(optimizer, "grad_scale", None)
        loss_scale = 1.0 if scale is None else float(scale)
        self._ask_for_gradients(optimizer, loss_scale)
        if self.method.replaces_update and self.method.due(self.steps_done + 1):
            self._hidden[id(optimizer)] = hide_gradients(optimizer)

    def _ask_for_gradients(self, optimizer: Optimizer, loss_scale: float) -> None:
        rates = learning_rates(optimizer)
        for name, layer in self.layers.items():
            if self._owners[name] is optimizer:
                rate = rates[layer.trained]
                self._gradients[name] = layer.sparsity.before_update(layer.trained, loss_scale, rate)

    def _after_update(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        for parameter, gradient in self._hidden.pop(id(optimizer), {}).items():
            parameter.grad = gradient
        if is_skipping(optimizer):
            return
        self._waiting.discard(id(optimizer))
        if not self._waiting:
            self._waiting = {id(optimizer) for optimizer in self._optimizers}
            self.step()

    def _add_state(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, self.state_key: self.state_dict()}

    def _take_state(self, optimizer: Optimizer, state: dict[str, Any]) -> None:
        if self.state_key in state:
            self.load_state_dict(state[self.state_key])

    def _take_step(self, optimizer: Optimizer) -> None:
        self.steps_done = int(optimizer.param_groups[0].get(self.state_key, self.steps_done))
        self._prepare()

    def _owner(self, layer: SparseLayer) -> Optimizer | None:
        return next((optimizer for optimizer in self._optimizers if holds(optimizer, layer.trained)), None)

    def _prepare(self) -> None:
        # torch.distributed.checkpoint takes along what stands in a group of parameters, and drops all else.
        for optimizer in self._optimizers if self._handles else ():
            optimizer.param_groups[0][self.state_key] = self.steps_done
        is_read = bool(self._optimizers) and self.method.reads_gradient(self.steps_done + 1)
        for name, layer in self.layers.items():
            expects = is_read and not layer.sparsity.is_frozen(layer.trained)
            layer.sparsity.expect_gradient(layer.trained, expects)
            if self._optimizers and not layer.sparsity.is_frozen(layer.trained):
                for each in (layer, *(average[name] for average in self._averages)):
                    self.method.prepare(each.sparsity, each.trained, self.steps_done)
            if self.drop_connect is not None and self._optimizers:
                # A move looks at the gradient of all that is kept.
                rate = 0.0 if expects else self.drop_connect.rate(self.steps_done)
                seed = generator_for(self._seed, self.steps_done + 1, f"drop {name}").initial_seed()
                layer.sparsity.expect_drops(layer.trained, rate, seed)

    def _move_all(self, step: int) -> None:
        """Decide where all masks move, and only then move them; the gradient of one layer at a time is formed."""
        last = list(self.layers)[-1]
        moving = {name: layer for name, layer in self.layers.items() if not layer.sparsity.is_frozen(layer.trained)}
        self._say_frozen(set(self.layers) - set(moving))
        views = (self._view(name, layer, step, is_last=name == last) for name, layer in moving.items())
        shared = self.method.share_out(step, views)
        densities = {} if shared is None else dict(zip(moving, shared, strict=True))
        masks = {
            name: self._decide(name, layer, step, is_last=name == last, density=densities.get(name))
            for name, layer in moving.items()
        }
        for name, layer in moving.items():
            reorders, resizes = layer.sparsity.reorders(masks[name]), layer.sparsity.resizes(masks[name])
            check_state(name, layer, self._optimizers, reorders=reorders, resizes=resizes)
        sizes = find_sizes(chain.from_iterable(optimizer.state.items() for optimizer in self._optimizers))
        for name, layer in moving.items():
            mask = masks.pop(name)
            layer.sparsity.move(mask, layer.trained, self._states_of(layer.trained), sizes)
            for average in self._averages:
                average[name].sparsity.move(mask, average[name].trained, [])
            if self._exploration is not None:
                self._exploration[name].visit(layer.sparsity.mask)

    def _say_frozen(self, names: set[str]) -> None:
        if new := sorted(names - self._frozen):
            logger.warning("the masks of frozen layers do not move: %s", ", ".join(name or "the model" for name in new))
        self._frozen |= names

    def _decide(self, name: str, layer: SparseLayer, step: int, *, is_last: bool, density: float | None) -> Any:
        try:
            # What the gradient is formed from is needed no longer than this view.
            gradient = self._gradients.pop(name, None)
            view = self._view(name, layer, step, is_last=is_last, gradient=gradient)
            view.check_gradient()
            mask = self.method.move(view if density is None else replace(view, density=density))
            check_mask(layer, mask)
            return layer.sparsity.condense(mask)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def _view(self, name: str, layer: SparseLayer, step: int, *, is_last: bool, gradient: Any = None) -> View:
        sparsity = layer.sparsity
        return View(
            pattern=sparsity.pattern,
            density=sparsity.density,
            layout=sparsity.layout,
            numbers=sparsity.numbers(layer.trained, gradient),
            learned=sparsity.learned_scores(),
            step=step,
            generator=generator_for(self._seed, step, name),
            is_last=is_last,
        )

    def _states_of(self, trained: nn.Parameter) -> list[dict[str, Any]]:
        """Return what each optimizer remembers of a parameter."""
        return [optimizer.state[trained] for optimizer in self._optimizers if trained in optimizer.state]
