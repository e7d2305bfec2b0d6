"""Handing the sum and the activation behind a batch norm to it, in the blocks of a model whose code shows them."""

import logging
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from cutwork.evaluation import hooks_of
from cutwork.layers.batch_norm import KINDS, fuse_norm
from cutwork.ops.activations import NONE

SUMS: set[Any] = {("call_function", operator.add), ("call_function", torch.add), ("call_method", "add")}
# These write into their first argument, which others may go on to read if the batch norm has not made it.
WRITING: set[Any] = {("call_function", operator.iadd), ("call_method", "add_")}
RELUS: set[Any] = {("call_function", each) for each in (F.relu, torch.relu, torch.relu_)}
RELUS |= {("call_method", each) for each in ("relu", "relu_")}

_log = logging.getLogger(__name__)


def is_trained_norm(module: nn.Module | None) -> bool:
    """Say whether a module is one of PyTorch's batch norms that goes by the statistics of the batch."""
    return type(module) in KINDS and module is not None and module.training


def fuse_sums(block: nn.Module, name: str) -> tuple[nn.Module, list[tuple[str, str]]]:
    """Return a block whose own batch norms do the sums and ReLUs behind them, and each of these with what it does.

    The block is read as a graph of calls. A sum and a ReLU in it are no modules, or one module for several, so the code
    that calls them must change: the block becomes an `fx.GraphModule` of the same parts. One that computes otherwise in
    evaluation, or that cannot be read so, comes back as it is.
    """
    if not any(is_trained_norm(child) for child in block.children()) or _is_watched(block):
        return block, []
    graph = _trace(block, name)
    if graph is None:
        return block, []
    done = [found for node in [*graph.nodes] if (found := _fuse_behind(block, graph, node))]
    if not done:
        return block, []
    graph.lint()
    return _build(block, graph), done


class _Written(fx.Proxy):
    """Notes `a += b` as what it is: for fx alone it is a new tensor, of which other names know nothing."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._write(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._write(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._write(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._write(operator.itruediv, other)

    def _write(self, function: Any, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})


class _Tracer(fx.Tracer):
    """Reads the code of one module and of none of its parts."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Written(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _is_watched(block: nn.Module) -> bool:
    """Say whether somebody has hooks on a block, or has replaced its forward: another module would lose them."""
    return any(hooks_of(block)) or "forward" in vars(block) or isinstance(block, nn.Sequential | fx.GraphModule)


def _trace(block: nn.Module, name: str) -> fx.Graph | None:
    """Return the graph of a block, if it is the same in training and in evaluation."""
    was_training, graphs = block.training, []
    try:
        for block.training in (False, True):
            graphs.append(_Tracer().trace(block))
    # Code that a tracer cannot follow fails in any way; the block then only stays slower.
    except Exception as error:
        _log.debug("fuse: %s stays as it is: its code cannot be read as a graph: %s", name, error)
        return None
    finally:
        block.training = was_training
    first, second = (str(graph) for graph in graphs)
    if first != second:
        _log.debug("fuse: %s stays as it is: it computes otherwise in evaluation", name)
        return None
    return graphs[0]


def _fuse_behind(block: nn.Module, graph: fx.Graph, node: fx.Node) -> tuple[str, str] | None:
    """Let one batch norm do what follows it; return its name in the block, and what it does."""
    norm = _module(block, node)
    if not is_trained_norm(norm) or len(node.args) != 1 or node.kwargs or _calls(graph, node) != 1:
        return None
    last, reader = node, _only_reader(node)
    residual = _other_term(reader, node)
    if residual is not None and reader is not None:
        last, reader = reader, _only_reader(reader)
    is_relu = reader is not None and _is_relu(block, reader)
    if is_relu and reader is not None:
        last = reader
    if last is node:
        return None
    with graph.inserting_before(last):
        arguments = node.args if residual is None else (*node.args, residual)
        fused = graph.call_module(str(node.target), arguments)
    last.replace_all_uses_with(fused)
    _erase(graph, last, node)
    fuse_norm(norm, "relu" if is_relu else NONE)  # pyrefly: ignore
    what = ["sum"] * (residual is not None) + ["ReLU"] * is_relu
    return str(node.target), " and ".join(what)


def _other_term(reader: fx.Node | None, node: fx.Node) -> fx.Node | None:
    """Return what is added to a node, if that is all its reader does."""
    if reader is None or len(reader.args) != 2 or reader.kwargs:
        return None
    what = (reader.op, reader.target)
    if what not in SUMS and not (what in WRITING and reader.args[0] is node):
        return None
    others = [each for each in reader.args if each is not node]
    return others[0] if len(others) == 1 and isinstance(others[0], fx.Node) else None


def _erase(graph: fx.Graph, last: fx.Node, first: fx.Node) -> None:
    """Take what was fused out of a graph, from the last on: it may write in place, so it counts as alive."""
    node = last
    while True:
        before = [each for each in node.all_input_nodes if each is first or first in each.all_input_nodes]
        graph.erase_node(node)
        if node is first:
            return
        node = before[0]


def _is_relu(block: nn.Module, node: fx.Node) -> bool:
    return type(_module(block, node)) is nn.ReLU or (node.op, node.target) in RELUS


def _module(block: nn.Module, node: fx.Node) -> nn.Module | None:
    return block.get_submodule(str(node.target)) if node.op == "call_module" else None


def _calls(graph: fx.Graph, node: fx.Node) -> int:
    return sum(each.op == "call_module" and each.target == node.target for each in graph.nodes)


def _only_reader(node: fx.Node) -> fx.Node | None:
    readers = list(node.users)
    return readers[0] if len(readers) == 1 else None


def _build(block: nn.Module, graph: fx.Graph) -> nn.Module:
    built: Any = fx.GraphModule(block, graph, class_name=type(block).__name__)
    # All parts, also those that are not called any more, in the order by which optimizers and files know them.
    for own in ("_parameters", "_buffers", "_modules"):
        getattr(built, own).clear()
        getattr(built, own).update(getattr(block, own))
    for key, value in vars(block).items():
        if key not in vars(built):
            setattr(built, key, value)
    return built.train(block.training)
