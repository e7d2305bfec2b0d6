"""What this machine is: for `cutwork doctor`, beside numbers that were measured on it, and as a key for these."""

import dataclasses
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import final

import torch

from cutwork import kernels
from cutwork.kernels import cpu
from cutwork.speed.cache import cache_file
from cutwork.text import counted
from cutwork.version import __version__

REQUIRED = ("torch", "numpy", "safetensors")
# Every package of an extra, in the order of pyproject.toml, and triton, which CUDA builds of torch bring along.
OPTIONAL = (
    "tyro",
    "rich",
    "tomli-w",
    "torchvision",
    "timm",
    "matplotlib",
    "scipy",
    "huggingface-hub",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "tensorboard",
    "submitit",
    "triton",
)


@final
@dataclass(frozen=True)
class Cpu:
    """The processor, and what this process may use of it."""

    name: str
    usable_cores: int
    torch_threads: int
    torch_capability: str
    features: list[str] | None  # None: the extension that asks the CPU is not built
    why_unknown: str


@final
@dataclass(frozen=True)
class Accelerator:
    """One GPU that PyTorch can use."""

    device: str
    name: str
    detail: str


@final
@dataclass(frozen=True)
class Diagnosis:
    """Everything `cutwork doctor` found; `str` gives the page for people, `to_json` the one for programs."""

    cutwork: str
    python: str
    system: str
    packages: dict[str, str | None]  # None: not installed
    cpu: Cpu
    accelerators: list[Accelerator]
    kernels: list[kernels.Kernel]
    timings: str  # the file in which plan() and pack() keep what they measured

    def to_json(self) -> str:
        """Return the diagnosis as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def __str__(self) -> str:
        sections = [
            f"cutwork {self.cutwork}, Python {self.python}, {self.system}",
            _section("Packages", [(name, version or "not installed") for name, version in self.packages.items()]),
            _section("CPU", _cpu_rows(self.cpu)),
            _section("GPU", [(gpu.device, f"{gpu.name}, {gpu.detail}") for gpu in self.accelerators])
            if self.accelerators
            else "GPU\n  none that PyTorch can use",
            _section(
                "Kernels",
                [(kernel.name, f"{'on ' if kernel.active else 'off'}  {kernel.reason}") for kernel in self.kernels],
            ),
            "Timings\n  plan() and pack() keep what they measure in a file, which may be deleted to measure anew:\n"
            f"  {self.timings}" + ("" if Path(self.timings).exists() else "  (not there yet)"),
        ]
        return "\n\n".join(sections)


@final
@dataclass(frozen=True)
class Machine:
    """Where, when and how something was measured."""

    cpu: str
    cores: int
    threads: int
    instruction_set: str
    torch: str
    cutwork: str
    date: str
    command: str
    commit: str | None = None

    @classmethod
    def here(cls, command: str) -> "Machine":
        """Return this machine, now."""
        return cls(
            cpu=cpu.processor(),
            cores=_usable_cores(),
            threads=torch.get_num_threads(),
            instruction_set=cpu.instruction_sets()[0] if cpu.has_tiles() else "none: the tile kernels are not built",
            torch=str(torch.__version__),
            cutwork=__version__,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            command=command,
            commit=_commit(),
        )

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.cpu}, {counted(self.cores, 'core')}, {counted(self.threads, 'thread')}, "
                f"tile kernels: {self.instruction_set}",
                f"torch {self.torch}, cutwork {self.cutwork}{f' at {self.commit}' if self.commit else ''}, {self.date}",
                *([f"$ {self.command}"] if self.command else []),
            ]
        )


def identify_machine(device: torch.device) -> str:
    """Return all of this machine, one device and its software that timings depend on, as text."""
    name = "cpu" if device.type == "cpu" else f"{device.type} {kernels.machine_of(device)}"
    return " | ".join(
        [
            kernels.machine_of(torch.device("cpu")),
            f"{torch.get_num_threads()} threads on {name}",
            f"torch {torch.__version__} cutwork {__version__} python {platform.python_version()}",
        ]
    )


def diagnose() -> Diagnosis:
    """Return versions, devices and active kernels of this machine.

    >>> diagnose().cpu.usable_cores >= 1
    True
    """
    return Diagnosis(
        cutwork=__version__,
        python=platform.python_version(),
        system=platform.platform(),
        packages={name: _version(name) for name in REQUIRED + OPTIONAL},
        cpu=_diagnose_cpu(),
        accelerators=_accelerators(),
        kernels=kernels.survey(),
        timings=str(cache_file() or "nowhere, because this user has no home folder; set XDG_CACHE_HOME"),
    )


def _version(package: str) -> str | None:
    if package == "torch":
        # The metadata of some builds leave out the local part, such as +cu130.
        return str(torch.__version__)
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _diagnose_cpu() -> Cpu:
    return Cpu(
        name=cpu.processor(),
        usable_cores=_usable_cores(),
        torch_threads=torch.get_num_threads(),
        torch_capability=torch.backends.cpu.get_cpu_capability(),
        features=cpu.extension().features() if cpu.is_built() else None,
        why_unknown=cpu.why_not_load(),
    )


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _accelerators() -> list[Accelerator]:
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        runtime = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        detail = (
            f"{properties.total_memory / 2**30:.0f} GiB, "
            f"compute capability {properties.major}.{properties.minor}, {runtime}"
        )
        found.append(Accelerator(f"cuda:{index}", properties.name, detail))
    if torch.backends.mps.is_available():
        found.append(Accelerator("mps", "Apple GPU", "Metal"))
    return found


def _cpu_rows(cpu: Cpu) -> list[tuple[str, str]]:
    features = f"unknown: {cpu.why_unknown}" if cpu.features is None else " ".join(cpu.features) or "none known"
    return [
        ("name", cpu.name),
        ("cores", f"{cpu.usable_cores} usable by this process, PyTorch runs {counted(cpu.torch_threads, 'thread')}"),
        ("features", features),
        ("PyTorch uses", cpu.torch_capability),
    ]


def _section(title: str, rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in rows)])


def _commit() -> str | None:
    """Return the commit of the sources that run, with a plus if they were changed; None outside a repository.

    The sources must be in the repository themselves: an environment may lie inside somebody else's.
    """
    here = Path(__file__)
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here.parent), *words], capture_output=True, text=True, check=False, env=environment
            )
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if (
        git("ls-files", "--error-unmatch", here.name) is None
        or (commit := git("rev-parse", "--short=10", "HEAD")) is None
    ):
        return None
    return commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
