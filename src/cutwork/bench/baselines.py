"""Forward products of one masked weight by other packages' sparse formats, and dense ones by onnxruntime.

Each takes `x_MI` and the dense weight with zeros in it, and returns a function that computes `y_MO`, in whatever layout
the package returns: turning it is not timed.
"""

import importlib
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from cutwork.bench.run import UnavailableError
from cutwork.patterns import Pattern

Product = Callable[[], Tensor]


def bsr(x_MI: Tensor, weight_OI: Tensor, pattern: Pattern, *, on_the_left: bool) -> Product:
    """Return PyTorch's block-sparse product."""
    return _multiply(x_MI, _to_bsr(weight_OI, pattern), on_the_left=on_the_left)


def csr(x_MI: Tensor, weight_OI: Tensor, pattern: Pattern, *, on_the_left: bool) -> Product:
    """Return PyTorch's product with a compressed sparse row weight."""
    return _multiply(x_MI, _quietly(weight_OI.to_sparse_csr), on_the_left=on_the_left)


def scipy_csr(x_MI: Tensor, weight_OI: Tensor, pattern: Pattern) -> Product:
    """Return SciPy's product, which runs on one core."""
    weight = _package("scipy.sparse", "scipy").csr_matrix(weight_OI.numpy())
    x_IM = x_MI.numpy().T
    return lambda: torch.from_numpy(weight @ x_IM).T


def onnxruntime(x_MI: Tensor, weight_OI: Tensor, pattern: Pattern, *, quantized: bool) -> Product:
    """Return onnxruntime's dense product; if quantized with int8 weights, and activations quantized as they come."""
    runtime = _package("onnxruntime", "onnxruntime")
    session = _session(runtime, _onnx_model(weight_OI, quantized=quantized))
    x = x_MI.numpy()
    return lambda: torch.from_numpy(session.run(None, {"x": x})[0])


# By form and precision.
BASELINES: dict[tuple[str, str], Callable[[Tensor, Tensor, Pattern], Product]] = {
    ("bsr", "fp32"): partial(bsr, on_the_left=False),
    ("bsr-left", "fp32"): partial(bsr, on_the_left=True),
    ("csr", "fp32"): partial(csr, on_the_left=False),
    ("csr-left", "fp32"): partial(csr, on_the_left=True),
    ("scipy", "fp32"): scipy_csr,
    ("onnx", "fp32"): partial(onnxruntime, quantized=False),
    ("onnx", "int8"): partial(onnxruntime, quantized=True),
}


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function as torch.compile makes it, for the shapes it first sees."""
    # Otherwise the ninth shape of the same function is no longer compiled, without a word.
    torch.compiler.reset()
    fast = torch.compile(function, dynamic=False)

    def run(*arguments: Tensor) -> Tensor:
        try:
            return fast(*arguments)
        except RuntimeError as error:
            raise UnavailableError(f"torch.compile says: {str(error).splitlines()[0]}") from error

    return run


def transform_of(form: str) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Return what a dense form makes of a function."""
    return compiled if form == "compiled" else lambda function: function


def _to_bsr(weight_OI: Tensor, pattern: Pattern) -> Tensor:
    tiling = pattern.tiling
    if tiling is None or tiling.order is not None or tiling.rows != tiling.columns:
        raise UnavailableError("PyTorch's block-sparse products on a CPU take square blocks only")
    if weight_OI.shape[0] % tiling.rows or weight_OI.shape[1] % tiling.columns:
        raise UnavailableError("PyTorch's block-sparse format takes no blocks that hang over")
    return _quietly(lambda: weight_OI.to_sparse_bsr((tiling.rows, tiling.columns)))


def _quietly(build: Product) -> Tensor:
    with warnings.catch_warnings():
        # That these formats are in beta is known; nothing follows from it here.
        warnings.filterwarnings("ignore", "Sparse (CSR|BSR) tensor support is in beta")
        return build()


def _multiply(x_MI: Tensor, weight: Tensor, *, on_the_left: bool) -> Product:
    """Return a product, with a weight on the left as PyTorch's faster one; some builds have no sparse kernels."""

    def product() -> Tensor:
        return (weight @ x_MI.T).T if on_the_left else F.linear(x_MI, weight)

    try:
        product()
    except RuntimeError as error:
        raise UnavailableError(f"PyTorch says: {str(error).splitlines()[0]}") from error
    return product


def _onnx_model(weight_OI: Tensor, *, quantized: bool) -> bytes:
    onnx = _package("onnx", "onnx")
    outputs, inputs = weight_OI.shape
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "linear",
        [onnx.helper.make_tensor_value_info("x", kind, ["tokens", inputs])],
        [onnx.helper.make_tensor_value_info("y", kind, ["tokens", outputs])],
        [onnx.numpy_helper.from_array(weight_OI.T.contiguous().numpy(), "weight")],
    )
    # The versions that any runtime of the last years reads.
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    if not quantized:
        return model.SerializeToString()
    # It asks for a preparation that a single product does not need; this is how it knows that there was one.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    quantization = _package("onnxruntime.quantization", "onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "model.onnx", Path(folder) / "quantized.onnx"
        onnx.save(model, str(source))
        quantization.quantize_dynamic(source, target, weight_type=quantization.QuantType.QInt8)
        return target.read_bytes()


def _session(runtime: ModuleType, model: bytes):
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its waiting threads would take the cores from the forms that run next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _package(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UnavailableError(f"{package} is not installed; pip install 'cutwork[benchmark]'") from error
