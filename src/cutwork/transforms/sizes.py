"""The sizes of a model as symbols, and the equations between them that a forward pass asks for.

The model runs once on tensors that have sizes but no numbers. Every size of a parameter or buffer is a symbol of its
own, and so are the whole numbers that modules keep as attributes and that may be sizes too. What the operators compare
in the course of that, and find equal, are the equations: a residual sum asks for equal widths, a concatenation for
their sum, the view that splits heads for a product, and what meets the outside, such as classes, for a number.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, final

import sympy
import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_map

from cutwork.evaluation import Call, first_input, hooked, in_evaluation
from cutwork.text import label

# The attributes that layers of PyTorch read as sizes when they run; other modules may read any.
READ: dict[type[nn.Module], tuple[str, ...]] = {
    _ConvNd: ("groups",),
    nn.LayerNorm: ("normalized_shape",),
    nn.RMSNorm: ("normalized_shape",),
    nn.MultiheadAttention: ("embed_dim", "num_heads", "head_dim"),
}
# A number of heads is the size of no parameter, but decides how one is split.
HEAD = "head"

# A symbol, a number or what is computed from them; sympy's classes do not say what their own arithmetic returns.
Expression = Any


@final
@dataclass(frozen=True)
class Attribute:
    """A whole number, or several, that a module keeps: the name of the module, and that of the attribute."""

    module: str
    name: str


@final
@dataclass
class Sizes:
    """The sizes of a model and the equations between them; a size that cannot change is a number.

    `parameters`, `buffers` and `indices`, which are buffers of whole numbers, hold the sizes of tensors by name.
    `values` are the symbols' sizes in the model as it is, `titles` say where they stand. `called` are the modules that
    ran in evaluation, `called_in_training` those of a training pass where evaluation leaves some out; `stems` read what
    the model is given, before any parameter has touched it.
    """

    parameters: dict[str, tuple[Expression, ...]] = field(default_factory=dict)
    buffers: dict[str, tuple[Expression, ...]] = field(default_factory=dict)
    indices: dict[str, tuple[Expression, ...]] = field(default_factory=dict)
    attributes: dict[Attribute, tuple[Expression, ...]] = field(default_factory=dict)
    values: dict[Expression, Any] = field(default_factory=dict)
    titles: dict[Expression, str] = field(default_factory=dict)
    equations: list[tuple[Expression, Expression]] = field(default_factory=list)
    called: set[str] = field(default_factory=set)
    called_in_training: set[str] = field(default_factory=set)
    stems: set[str] = field(default_factory=set)


def trace_sizes(model: nn.Module, call: Call) -> Sizes:
    """Return the sizes of a model, and what ties them together when it is called so in evaluation.

    Nothing of the model changes. Raise ValueError where it cannot run without numbers; where it does not run with these
    inputs at all, its own error says why.
    """
    with in_evaluation(model):
        call(model)
    sizes = Sizes()
    symbols = _Listening(sizes)
    mode = FakeTensorMode(shape_env=symbols)
    # To look up what was computed before takes longer here than to compute it.
    mode.cache_enabled = False
    twin = _make_twin(model, symbols, mode)
    with mode:
        given = Call(*tree_map(lambda each: _without_numbers(each, mode), (call.args, dict(call.kwargs))))
    with in_evaluation(twin):
        sizes.called = _run(twin, given, mode, sizes)
        if any(name not in sizes.called and any(own_tensors(module)) for name, module in twin.named_modules()):
            # Parts that only training runs, such as auxiliary classifiers.
            twin.train()
            sizes.called_in_training = _run(twin, given, mode, sizes)
    return sizes


def _run(twin: nn.Module, call: Call, mode: FakeTensorMode, sizes: Sizes) -> set[str]:
    """Run the twin of a model once, which writes down equations, and return the names of the modules that ran."""
    names = {module: name for name, module in twin.named_modules()}
    running: list[str] = []
    called: set[str] = set()

    def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
        running.append(names[module])
        called.add(names[module])
        if isinstance(module, _ConvNd):
            _tie_groups(module, first_input(args, kwargs))
        if (args or kwargs) and isinstance(x := first_input(args, kwargs), Tensor) and not x.requires_grad:
            sizes.stems.add(names[module])

    def leave(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        running.pop()

    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        # The fused transformer layer asks for no sizes.
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.enable_grad(), enable_python_dispatcher(), mode, hooked(names, enter, leave):
            output = call(twin)
    except Exception as error:
        raise ValueError(
            f"{label(running[-1] if running else '')}: the model cannot run without numbers, from which it would be "
            f"seen which sizes belong together: {type(error).__name__}: {error}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    for tensor in tensors_in(output):
        for size in tensor.shape:
            # What the model returns keeps its shape.
            int(size)
    return called


@final
class _Listening(ShapeEnv):
    """Answers all questions about sizes as they are in the model, and writes down which were found equal."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(duck_shape=False)
        self.sizes = sizes
        self.answers: dict[Expression, Expression] = {}
        self.written: set[Expression] = set()

    def evaluate_expr(self, orig_expr: Expression, *unused: object, **unread: object) -> Expression:
        # Most questions are asked many times, and sympy is slow.
        if (answer := self.answers.get(orig_expr)) is None:
            answer = self.answers[orig_expr] = orig_expr.xreplace(self.sizes.values)
        if orig_expr not in self.written and not ShapeEnv._suppress_guards_tls():
            self.written.add(orig_expr)
            self.sizes.equations += _equations_in(orig_expr, answer)
        return answer

    def make(self, value: int, title: str) -> Any:
        """Return a new symbol of this value, as a number that a tensor can have as a size."""
        source = ConstantSource(title)
        symbol = self.create_symbol(value, source, dynamic_dim=DimDynamic.DYNAMIC)
        self.sizes.values[symbol], self.sizes.titles[symbol] = sympy.Integer(value), title
        return self.create_symintnode(symbol, hint=value, source=source)


def _equations_in(question: Expression, answer: Expression) -> Iterator[tuple[Expression, Expression]]:
    """Yield what is equal if a question is answered so. A number that is no size, such as a scale, ties nothing."""
    if not question.free_symbols:
        return
    if isinstance(answer, sympy.Integer):
        yield question, answer
    elif isinstance(question, sympy.Eq | sympy.Ne) and (answer == sympy.true) == isinstance(question, sympy.Eq):
        yield question.lhs, question.rhs
    elif isinstance(question, sympy.And) and answer == sympy.true:
        for part in question.args:
            yield from _equations_in(part, answer)


def _make_twin(model: nn.Module, symbols: _Listening, mode: FakeTensorMode) -> nn.Module:
    """Return a copy of the model that has symbols for sizes, and no numbers."""
    memo: dict[int, Any] = {}
    for name, module in model.named_modules():
        for key, tensor in own_tensors(module):
            path = f"{name}.{key}" if name else key
            twin = memo.get(id(tensor))
            if twin is None:
                shape = _make_shape(module, key, tensor, symbols, path, memo)
                with mode:
                    twin = torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
                if isinstance(tensor, nn.Parameter):
                    twin = nn.Parameter(twin, requires_grad=tensor.is_floating_point())
                memo[id(tensor)] = twin
            table = symbols.sizes.buffers if tensor.is_floating_point() else symbols.sizes.indices
            table = symbols.sizes.parameters if isinstance(tensor, nn.Parameter) else table
            table[path] = tuple(map(as_expression, twin.shape))
    copied = deepcopy(model, memo)
    widths = set(map(int, symbols.sizes.values.values()))
    for name, module in copied.named_modules():
        for key in _sizes_kept_by(module, widths):
            title = f"{name}.{key}" if name else key
            value = vars(module)[key]
            numbers = [value] if isinstance(value, int) else value
            made = [symbols.make(number, title) if number > 1 else number for number in numbers]
            vars(module)[key] = made[0] if isinstance(value, int) else type(value)(made)
            symbols.sizes.attributes[Attribute(name, key)] = tuple(map(as_expression, made))
    return copied


def _make_shape(
    module: nn.Module, key: str, tensor: Tensor, symbols: _Listening, path: str, twins: Mapping[int, Any]
) -> list[Any]:
    weight = module._parameters.get("weight") if _is_of_torch(module) else None
    has_rows = weight is not None and not isinstance(module, _ConvTransposeNd)
    if has_rows and tensor is not weight and tensor.shape == weight.shape[:1]:
        # Layers of PyTorch have an entry of bias, of running mean and the like for each row of the weight.
        return [twins[id(weight)].shape[0]]
    fixed = 2 if isinstance(module, _ConvNd) and key == "weight" else tensor.dim()
    return [
        symbols.make(size, f"{path}[{at}]") if size > 1 and at < fixed else size for at, size in enumerate(tensor.shape)
    ]


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers that a module itself holds, by name."""
    for key, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield key, tensor


def as_expression(size: Any) -> Expression:
    """Return the expression behind a size."""
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def _sizes_kept_by(module: nn.Module, widths: set[int]) -> list[str]:
    """Return the attributes of a module that hold sizes which may change with those of parameters."""
    read = [name for kind, names in READ.items() if isinstance(module, kind) for name in names]
    if _is_of_torch(module):
        return read
    return [name for name, value in vars(module).items() if name in read or _may_be_sizes(name, value, widths)]


def _may_be_sizes(name: str, value: Any, widths: set[int]) -> bool:
    if type(value) is int:
        return value > 1 and (value in widths or HEAD in name)
    return type(value) in (tuple, list) and all(type(each) is int for each in value) and not widths.isdisjoint(value)


def _is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def _tie_groups(layer: _ConvNd, x: Tensor) -> None:
    """Ask for what a convolution does not ask when it runs without numbers."""
    channels = x.shape[-len(layer.kernel_size) - 1]
    inputs = layer.weight.shape[0] if layer.transposed else layer.weight.shape[1] * layer.groups
    torch._check(channels == inputs)


def _without_numbers(given: Any, mode: FakeTensorMode) -> Any:
    return mode.from_tensor(given, static_shapes=True) if isinstance(given, Tensor) else given


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of what a model returned; a cache of keys and values is no result."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from tensors_in(list(output.values()))
    elif isinstance(output, list | tuple):
        for each in output:
            yield from tensors_in(each)
