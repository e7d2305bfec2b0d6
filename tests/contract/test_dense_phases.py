"""A run may be dense at first, dense in the end, or both: with every method, on every pattern, in either storage."""

import copy

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.methods import METHODS, Method
from cutwork.sparsity.fixed import Fixed

pytestmark = pytest.mark.grid

PATTERNS = ["unstructured", "block:8x3", "shuffled:4", "2:4", "2:4-tile"]
PHASES = {
    "dense in the end": {"dense_from": 6},
    "dense at first": {"sparse_from": 3},
    "sparse between": {"sparse_from": 2, "dense_from": 6},
}
STEPS = 9
STOP = 7
TRAIN_IN_FULL = {"supermask", "binned", "ste", "srste", "spartan"}


def quick(name: str) -> Method:
    """Return a method of this name that moves several times in a few steps, sparse from the beginning."""
    if name == "rigl by estimate":
        return cw.RigL(every=2, until=8, estimate=True)
    if name == "binned":
        return cw.Supermask(every=2, weight_bits=3)
    options: dict = {"every": 2, "until": 8} if name in {"gradual", "set", "rigl", "dsb", "granet", "srigl"} else {}
    extra = {"granet": {"thin_until": 5}, "gradual": {"start_density": 0.9}, "spartan": {"thin_until": 3, "until": 8}}
    return METHODS[name](**options, **extra.get(name, {}))


class Run:
    def __init__(self, method: Method, pattern: str, storage: str):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1), nn.GELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(72, 16), nn.GELU(),
            nn.Linear(16, 8),
        )  # fmt: skip
        density = None if cw.parse(pattern).density else 0.3
        self.sparsifier = cw.sparsify(self.model, pattern, density=density, method=method, storage=storage)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.sparsifier.attach(self.optimizer)

    def train(self, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(16, 4, 6, 6, generator=generator), torch.randint(0, 8, (16,), generator=generator)
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(x), y).backward()
        self.optimizer.step()

    def matrices(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        sparsities = [(layer.sparsity, layer.trained) for layer in self.sparsifier.layers.values()]
        return [(sparsity.mask_matrix(), sparsity.matrix(trained)) for sparsity, trained in sparsities]


@pytest.mark.parametrize("storage", ["dense", "compressed"])
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method_name", [*METHODS, "rigl by estimate", "binned"])
def test_a_run_is_dense_for_a_part_of_it(method_name, pattern, phase, storage, tmp_path):
    if storage == "compressed" and (method_name in TRAIN_IN_FULL or cw.parse(pattern).tiling is None):
        with pytest.raises(ValueError, match=r"has no tiles to store|trains the whole weight behind the mask"):
            Run(cw.Switch(quick(method_name), **PHASES[phase]), pattern, storage)
        return
    method = cw.Switch(quick(method_name), **PHASES[phase])
    run, resumed, loaded = (Run(method, pattern, storage) for _ in range(3))
    begin, end = PHASES[phase].get("sparse_from", 0), PHASES[phase].get("dense_from", STEPS + 1)
    for step in range(STEPS):
        before = run.matrices()
        run.train(step)
        for (old, _), (mask, weight) in zip(before, run.matrices(), strict=True):
            assert bool(mask.all()) == (not begin <= step + 1 < end)
            if step + 1 == end and method_name not in TRAIN_IN_FULL:
                assert not weight[~old].any()
            if step + 1 == end + 2:
                assert weight.all(), "not everything that is dense trains"
        if step + 1 == STOP:
            cw.save(run.model, tmp_path / "run", sparsifier=run.sparsifier, optimizer=run.optimizer)
            cw.load(tmp_path / "run", loaded.model, sparsifier=loaded.sparsifier, optimizer=loaded.optimizer)
            state = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict()))
            resumed.model.load_state_dict(state[0])
            resumed.optimizer.load_state_dict(state[1])
    for other in (resumed, loaded):
        for step in range(STOP, STEPS):
            other.train(step)
        for name, value in run.model.state_dict().items():
            assert torch.equal(value, other.model.state_dict()[name]), name
    check_the_dense_twin(run, ends_dense=end <= STEPS)


def check_the_dense_twin(run: Run, *, ends_dense: bool) -> None:
    x = torch.randn(4, 4, 6, 6)
    run.model.eval()
    y = run.model(x)
    assert (cw.report(run.model).total.density == 1) == ends_dense
    run.sparsifier.detach()
    masks = cw.bake(run.model)
    torch.testing.assert_close(run.model(x), y)
    assert all(mask.all() for mask in masks.values()) == ends_dense
    assert not any(isinstance(module, Fixed) for module in run.model.modules())
