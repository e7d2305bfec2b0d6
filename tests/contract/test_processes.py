"""A model travels to processes that are started anew, as data loaders are on macOS and Windows."""

import pytest
import torch
from torch import nn

import cutwork as cw


def answer(model, x, queue):
    torch.set_num_threads(1)
    # By value: this process ends before the other one reads.
    queue.put(model(x).detach().numpy().copy())


@pytest.mark.slow
@pytest.mark.parametrize("start", ["spawn", pytest.param("forkserver", marks=pytest.mark.exhaustive)])
def test_sparse_models_of_all_kinds_work_in_a_new_process(start):
    context = torch.multiprocessing.get_context(start)
    models = []
    for options in (
        {"method": cw.RigL(every=2, until=9)},
        {"method": cw.RigL(every=2, until=9, estimate=True)},
        {"storage": "compressed", "method": cw.RigL(every=2, until=9)},
        {"method": "supermask"},
        {"method": "ste", "steps": 9},
    ):
        model = nn.Sequential(nn.Linear(16, 16), nn.Unflatten(1, (16, 1, 1)), nn.Conv2d(16, 8, 1))
        cw.sparsify(model, "block:4", density=0.5, **options)
        models.append(model)
    model = nn.ModuleList(models)
    x, queue = torch.randn(2, 16), context.Queue()
    process = context.Process(target=answer, args=(Each(model), x, queue))
    process.start()
    found = queue.get(timeout=120)
    process.join(60)
    assert process.exitcode == 0
    torch.testing.assert_close(torch.from_numpy(found), Each(model)(x))


class Each(nn.Module):
    def __init__(self, models):
        super().__init__()
        self.models = models

    def forward(self, x):
        return torch.stack([model(x) for model in self.models])
