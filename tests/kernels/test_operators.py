"""The library of operators for programs without Python, against the operators that Python registers."""

import ctypes
import json
import subprocess
import sys

import pytest
import torch

from cutwork.kernels import cpu
from cutwork.ops.activations import ACTIVATIONS
from cutwork.ops.int8_linear import quantize
from cutwork.ops.topology import Topology
from cutwork.patterns import Block, Shuffled
from cutwork.sparsity.compressed import index_of

try:
    LIBRARY = str(cpu.operator_library())
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)
if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):
    pytest.skip("programs without Python need PyTorch 2.10: before, no text reaches operators", allow_module_level=True)

OPERATORS = ("block_linear", "block_conv2d", "int8_linear")
BLOCK = Block(4, 4)
Case = tuple[str, list]


def run(code: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run a new process that has loaded torch and the library, but not cutwork."""
    code = f"import sys, torch\ntorch.ops.load_library({LIBRARY!r})\nops = torch.ops.cutwork\n{code}"
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def results(cases: list[Case], folder) -> list:
    """Return what the library's operators return, or say."""
    torch.save(cases, folder / "cases.pt")
    code = """
results = []
for name, arguments in torch.load(sys.argv[1] + '/cases.pt'):
    try:
        results.append(getattr(ops, name)(*arguments))
    except RuntimeError as error:
        results.append(str(error))
assert 'cutwork' not in sys.modules
torch.save(results, sys.argv[1] + '/results.pt')
"""
    run(code, folder)
    return torch.load(folder / "results.pt")


def check(cases: list[Case], folder) -> None:
    for (name, arguments), result in zip(cases, results(cases, folder), strict=True):
        expected = getattr(torch.ops.cutwork, name)(*arguments)
        assert isinstance(result, torch.Tensor), result
        assert torch.equal(result, expected), (name, arguments)
        assert result.dtype == expected.dtype and result.stride() == expected.stride()


def index_and_values(pattern, outputs: int, inputs: int) -> tuple[Topology, torch.Tensor]:
    mask = pattern.project(torch.rand(outputs, inputs), 0.4)
    index = index_of(mask, pattern)
    return index, index.gather(torch.randn(outputs, inputs) * mask)


def linear_case(pattern=BLOCK, tokens=5, before="none", after="none", dtype=torch.float32, more=True) -> Case:
    index, values = index_and_values(pattern, 18, 23)
    x, bias, residual = torch.randn(tokens, 23), torch.randn(18), torch.randn(tokens, 18)
    tensors = [a.to(dtype) for a in (x, values)], [a.to(dtype) if more else None for a in (bias, residual)]
    return "block_linear", [*tensors[0], index.ptr, index.col, index.order, *tensors[1], 18, before, after]


def conv_case(pattern=BLOCK, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, after="none") -> Case:
    outputs, channels, kernel = 16, 8, (3, 2)
    index, values = index_and_values(pattern, outputs, kernel[0] * kernel[1] * channels // groups)
    x = torch.randn(2, channels, 9, 8)
    geometry = [list(kernel), list(stride), list(padding), list(dilation), groups]
    at = (index.ptr, index.col, index.order)
    return "block_conv2d", [x, values, *at, torch.randn(outputs), outputs, *geometry, after]


def int8_case(pattern=BLOCK, dtype=torch.float32, after="none") -> Case:
    index, values = index_and_values(pattern, 18, 23)
    at = (index.ptr, index.col, index.order)
    integers, scales = quantize(values, *at, 18)
    return "int8_linear", [
        torch.randn(5, 23).to(dtype),
        integers,
        scales,
        *at,
        torch.randn(18),
        18,
        index.columns,
        after,
    ]


def changed(case: Case, place: int, value: object) -> Case:
    name, arguments = case
    return name, [*arguments[:place], value, *arguments[place + 1 :]]


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def test_schemas_are_those_of_python():
    code = f"import json\nprint(json.dumps([str(getattr(ops, name).default._schema) for name in {OPERATORS}]))"
    schemas = json.loads(run(code).stdout)
    # A size is a number to a compiled program.
    in_python = [str(getattr(torch.ops.cutwork, name).default._schema).replace("SymInt", "int") for name in OPERATORS]
    assert schemas == in_python


def test_linear_layers_come_out_equal(tmp_path):
    cases = [
        linear_case(before=name, after=name, dtype=dtype)
        for name in ACTIVATIONS
        for dtype in (torch.float32, torch.bfloat16)
    ]
    cases += [
        linear_case(pattern, tokens, more=False) for pattern in (Shuffled(5, 1), Block(16, 1)) for tokens in (0, 1, 40)
    ]
    # Numbers that do not lie side by side, and memory that does not begin at its begin.
    name, (x, values, *rest) = linear_case(Shuffled(4, 4))
    apart = [torch.stack([a, a], -1)[..., 1] for a in (x, values)]
    check([*cases, (name, [*apart, *rest])], tmp_path)


def test_convolutions_come_out_equal(tmp_path):
    cases = [conv_case(after=name) for name in ACTIVATIONS]
    cases += [conv_case(Shuffled(4, 4)), conv_case(stride=(2, 3), padding=(1, 2)), conv_case(dilation=(2, 1), groups=2)]
    # A stride far beyond the image is no more work.
    cases += [conv_case(stride=(10**9, 10**15), padding=(1, 2))]
    name, (x, *rest) = conv_case()
    check([*cases, (name, [x.contiguous(memory_format=torch.channels_last), *rest])], tmp_path)


def test_int8_layers_come_out_equal(tmp_path):
    patterns = (Block(4, 4), Block(5, 3), Shuffled(8, 1))
    check([int8_case(pattern, dtype) for pattern in patterns for dtype in (torch.float32, torch.bfloat16)], tmp_path)


REFUSED = [
    (lambda: changed(linear_case(), 0, torch.randn(2, 3, 23)), "x_MI has the shape [2, 3, 23]; it must have 2 dim"),
    (lambda: changed(linear_case(), 0, torch.randn(5, 23).double()), "x_MI is float64; outside of Python it must be"),
    (
        lambda: changed(linear_case(), 5, torch.randn(18).half()),
        "bias_O is float16; outside of Python it must be float32",
    ),
    (lambda: changed(linear_case(), 5, torch.randn(17)), "bias_O has the shape [17]; expected [18]"),
    (lambda: changed(linear_case(), 6, torch.randn(4, 18)), "residual_MO has the shape [4, 18]; expected [5, 18]"),
    (lambda: changed(linear_case(), 2, torch.zeros(3, dtype=torch.int32)), "ptr has the shape [3]; expected [6]"),
    (lambda: changed(linear_case(), 2, torch.zeros(6)), "ptr is float32; it must be contiguous int32"),
    (lambda: linear_case(before="tanh"), "unknown activation 'tanh'; write one of none, relu"),
    (lambda: changed(conv_case(), 0, torch.randn(2, 8, 2, 8)), "an image has 2 rows or columns, which is less than"),
    (lambda: conv_case(Block(16, 4), groups=2), "tiles of 16 outputs may reach over the 2 groups"),
    (
        lambda: changed(int8_case(), 1, torch.zeros(1, 4, 4, dtype=torch.int8)),
        "values has the shape [1, 4, 4]; expected",
    ),
    (lambda: changed(int8_case(), 1, torch.zeros(1, 4, 4)), "values is float32; outside of Python it must be int8"),
]


def test_what_kernels_cannot_read_is_refused(tmp_path):
    cases = [make() for make, _ in REFUSED]
    for (name, _), result, (_, reason) in zip(cases, results(cases, tmp_path), REFUSED, strict=True):
        assert isinstance(result, str), reason
        assert result.startswith(f"cutwork::{name}: {reason}")


def test_calls_leave_no_memory_behind(tmp_path):
    torch.save([linear_case(), conv_case(), changed(linear_case(), 5, torch.randn(17))], tmp_path / "cases.pt")
    code = """
from pathlib import Path
from contextlib import suppress

def used():
    return int(Path('/proc/self/statm').read_text().split()[1]) * 4096

def work(times):
    for name, arguments in cases:
        for _ in range(times):
            with suppress(RuntimeError):
                getattr(ops, name)(*arguments)

cases = torch.load(sys.argv[1])
torch.set_num_threads(1)
work(1000)
before = used()
work(10000)
print(used() - before)
"""
    assert int(run(code, tmp_path / "cases.pt").stdout) < 2**20


def test_it_chooses_the_instruction_sets_that_python_chooses():
    library = ctypes.CDLL(LIBRARY)
    library.cutwork_instruction_sets.restype = ctypes.c_char_p
    chosen = [cpu.instruction_sets()[0], cpu.narrow_instruction_sets()[0]]
    assert library.cutwork_instruction_sets().decode().split() == chosen


@pytest.mark.parametrize(
    ("before", "reason"),
    [("", "this process has no aoti_torch_library_init_fragment; load libtorch"), ("import torch, cutwork", "already")],
)
def test_loaded_in_a_wrong_place_it_says_so_and_defines_nothing(before, reason):
    code = (
        f"{before}\nimport ctypes\nassert not ctypes.CDLL({LIBRARY!r}).cutwork_operators_are_defined()\n"
        "import torch, cutwork\nassert torch.ops.cutwork.block_linear.default"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert reason in done.stderr


def test_a_missing_library_is_an_error_that_says_where_it_is_built(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu.extension(), "__file__", str(tmp_path / "_cpu.so"))
    with pytest.raises(ImportError, match="it is built on Linux, with GCC or Clang: reinstall cutwork there"):
        cpu.operator_library()
