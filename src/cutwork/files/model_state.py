"""The tensors of a model, as a file takes and gives them."""

from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from cutwork.distributed import is_sharded
from cutwork.files.storage import State, under
from cutwork.layers.swap import sparse_layers
from cutwork.text import label


def check_is_whole(model: nn.Module) -> None:
    """Raise ValueError unless all tensors of a model are here, with a shape and with memory."""
    held = model.state_dict(keep_vars=True)
    _check_have_shapes(held)
    for key, value in held.items():
        if isinstance(value, Tensor) and is_sharded(value):
            raise ValueError(
                f"{key} is sharded over processes; use torch.distributed.checkpoint, which takes the model's state "
                "dict as it is, or gather it first with get_model_state_dict and full_state_dict=True"
            )
        if isinstance(value, Tensor) and value.is_meta:
            raise ValueError(
                f"{key} is on the meta device and has no memory; name the device to put it on, "
                "load(path, model, device='cpu'), or give it memory and numbers first"
            )


def check_can_be_given_all(model: nn.Module) -> None:
    """Raise ValueError if some tensor of a model would still have no memory after a file has filled it."""
    held = model.state_dict(keep_vars=True)
    _check_have_shapes(held)
    for name, buffer in model.named_buffers():
        if buffer.is_meta and name not in held:
            raise ValueError(
                f"{name} is on the meta device and in no file; build its module outside of torch.device('meta'), or "
                "give it memory and numbers first"
            )


def check_tensors(saved: State, found: State) -> None:
    """Raise ValueError unless two state dicts have the same tensors: their names, types, shapes, and which are one."""
    saved, found = _outlines(saved), _outlines(found)
    differing = [key for key in {**saved, **found} if saved.get(key) != found.get(key)]
    if differing:
        key = differing[0]
        raise ValueError(
            f"it was saved from another model: {len(differing)} of {len(saved)} tensors differ, first {key}: "
            f"{saved.get(key, 'nothing')} in the checkpoint, {found.get(key, 'nothing')} in the model; build the model "
            "that was saved, in the same dtypes"
        )


def name_tensors(state: State) -> dict[int, str]:
    """Return the name of each tensor by its id; of several the first in the alphabet."""
    names: dict[int, str] = {}
    for key in sorted(state):
        names.setdefault(id(state[key]), key)
    return names


def load_extra_states(undo: ExitStack, model: nn.Module, state: State) -> None:
    """Give modules the extra state that they saved; raise ValueError where one refuses it."""
    for name, module in model.named_modules():
        key = under(name, "_extra_state")
        if key not in state:
            continue
        undo.callback(module.set_extra_state, module.get_extra_state())
        try:
            module.set_extra_state(state[key])
        except Exception as error:
            raise ValueError(f"{label(name)} refuses its extra state: {error!r}; load another") from error


def give_all(model: nn.Module, state: State, device: torch.device) -> None:
    """Put the tensors of a file, on a device, in the place of those of a model; what is shared stays so."""
    given: dict[int, Tensor] = {}
    for key, held in model.state_dict(keep_vars=True).items():
        value = state[key]
        if isinstance(value, Tensor) and id(value) not in given:
            moved = value.to(device)
            is_parameter = isinstance(held, nn.Parameter)
            given[id(value)] = nn.Parameter(moved, requires_grad=held.requires_grad) if is_parameter else moved
    model.load_state_dict({key: given.get(id(value), value) for key, value in state.items()}, assign=True)
    for layer in sparse_layers(model).values():
        layer.sparsity.restart(device)


def _check_have_shapes(held: State) -> None:
    for key, value in held.items():
        if isinstance(value, UninitializedBuffer | UninitializedParameter):
            raise ValueError(f"{key} has no shape yet; run one batch through the model first")


def _outlines(state: State) -> dict[str, str]:
    """Say what must agree of each tensor: its dtype, its shape, and which other one is the same."""
    first = name_tensors(state)
    outlines = {}
    for key, value in state.items():
        tied = "" if first[id(value)] == key else f" tied to {first[id(value)]}"
        outlines[key] = f"{value.dtype} {list(value.shape)}{tied}" if isinstance(value, Tensor) else "no tensor"
    return outlines
