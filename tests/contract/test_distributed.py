"""Two processes train what one would: data parallelism and sharding move the same masks everywhere.

Started by torchrun, this file is the program of one rank: it runs every entry of RUNS and saves what came out. Started
by pytest, it starts torchrun once and compares.
"""

import contextlib
import functools
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import cutwork as cw
from cutwork.distributed import whole
from cutwork.layers.compressed import CompressedLinear

NUM_RANKS = 2
STEPS = 9
BATCH = 8
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this build of PyTorch has no torch.distributed")

METHODS = {
    "rigl": cw.RigL(every=2, until=8),
    "rigl by estimate": cw.RigL(every=2, until=8, estimate=True),
    "srigl": cw.SRigL(every=2, until=8),
    "granet": cw.GraNet(every=2, until=8, thin_until=5),
    "gradual by taylor": cw.Gradual(every=2, until=8, drop=cw.taylor),
    "set": cw.set_(every=2, until=8),
    "supermask": cw.Supermask(),
    "spartan": cw.Spartan(thin_until=2, until=5),
    "srste": cw.srste(decay=0.1),
    "static": cw.Static(),
    "dense at the end": cw.Switch(cw.RigL(every=2, until=8), dense_from=7),
    "dense at first": cw.Switch(cw.srste(decay=0.1), sparse_from=3),
}
CASES = [
    *[("rigl", pattern) for pattern in ("unstructured", "block:4", "shuffled:4")],
    ("rigl by estimate", "block:4"),
    *[(method, "unstructured") for method in ("srigl", "granet", "gradual by taylor", "set", "srste")],
    ("supermask", "block:4"),
    ("spartan", "block:4"),
    ("dense at the end", "shuffled:4"),
    ("dense at first", "unstructured"),
]
COMPRESSED_CASES = [
    *[("rigl", pattern) for pattern in ("block:4", "block:5x3", "vector:4", "shuffled:4x1")],
    ("rigl by estimate", "block:4"),
    ("set", "vector:4"),
]
HALF_CASES = [case for case in CASES if case[0] in {"rigl", "rigl by estimate", "supermask", "srste"}]


def build(seed: int = 0) -> nn.Sequential:
    """Return a small convolutional network; no number of outputs but the last divides by two."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 11, 3), nn.ReLU(), nn.Conv2d(11, 19, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(76, 37), nn.ReLU(), nn.Linear(37, 10),
    ).double()  # fmt: skip


def batch_of(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(BATCH, 3, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 10, (BATCH,), generator=generator)


def train(
    method: str,
    pattern: str,
    *,
    wrap=lambda model: model,
    part=(0, 1),
    micro_batches=1,
    seed=0,
    layers="*",
    storage="dense",
    with_chance=False,
) -> dict:
    """Train on one part of every batch, in micro-batches, and return all that a run ends with, in whole tensors.

    `with_chance` chooses the first masks by the part of a batch, and leaves units out in each step.
    """
    model = build(seed)

    def first_loss(model: nn.Module) -> torch.Tensor:
        x, y = (tensor.chunk(part[1])[part[0]] for tensor in batch_of(STEPS))
        return F.cross_entropy(model(x), y)

    sparsifier = cw.sparsify(
        *(model, {layers: pattern}),
        density=0.3,
        method=METHODS[method],
        init=cw.snip(first_loss, rounds=2) if with_chance else None,
        drop_connect=0.3 if with_chance else None,
        track=True,
        storage=storage,
    )
    wrapped = wrap(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sparsifier.attach(optimizer)
    for step in range(STEPS):
        mine = [tensor.chunk(part[1])[part[0]] for tensor in batch_of(step)]
        pieces = list(zip(*(tensor.chunk(micro_batches) for tensor in mine), strict=True))
        for number, (x, y) in enumerate(pieces):
            last = number == len(pieces) - 1
            with wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not last else quiet():
                (F.cross_entropy(wrapped(x), y) / micro_batches).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return {
        "weights": {
            name.replace("values", "weight"): in_full(name, parameter, sparsifier)
            for name, parameter in model.named_parameters()
        },
        "masks": {name: layer.sparsity.mask for name, layer in sparsifier.layers.items()},
        "state": {
            f"{name.replace('values', 'weight')}.{key}": in_full(name, value, sparsifier)
            for name, parameter in model.named_parameters()
            for key, value in optimizer.state[parameter].items()
        },
        "turnover": {name: seen.turnover for name, seen in sparsifier.exploration.items()},
    }


def in_full(name: str, tensor: torch.Tensor, sparsifier: cw.Sparsifier) -> torch.Tensor:
    """Return a tensor as dense storage on one process would have it."""
    if name.endswith(".values") and tensor.dim() > 0:
        return sparsifier.layers[name.removesuffix(".values")].sparsity.matrix(tensor)
    return whole(tensor.detach())


def quiet() -> contextlib.AbstractContextManager:
    return contextlib.nullcontext()


def shard(model: nn.Sequential) -> nn.Sequential:
    for layer in model:
        if isinstance(layer, nn.Linear | nn.Conv2d | CompressedLinear):
            fully_shard(layer)
    return fully_shard(model)


def shard_in_half_precision(model: nn.Sequential) -> nn.Sequential:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            fully_shard(layer, mp_policy=policy)
    return fully_shard(model, mp_policy=policy)


def compile_under_ddp(model: nn.Sequential) -> DistributedDataParallel:
    wrapped = DistributedDataParallel(model)
    wrapped.compile(backend="aot_eager")
    return wrapped


def attach_with_masks_of_different_seeds(wrap) -> str:
    """Return the error that a rank gets whose masks were chosen from weights of its own."""
    model = build(seed=dist.get_rank())
    sparsifier = cw.sparsify(model, "unstructured", density=0.3, init="magnitude", method=METHODS["rigl"])
    wrap(model)
    try:
        sparsifier.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    except ValueError as error:
        return str(error)
    return "nothing was said"


def compressed_and_refused() -> dict[str, str]:
    """Return the error of each run that several processes cannot make in compressed storage."""
    cases = {
        "moving and sharded": ("rigl", shard, 0),
        "changing number": ("granet", DistributedDataParallel, 0),
        "dense in the end": ("dense at the end", DistributedDataParallel, 0),
        "different masks": (
            "static", functools.partial(DistributedDataParallel, broadcast_buffers=False), dist.get_rank(),
        ),
    }  # fmt: skip
    return {what: attach_compressed(*case) for what, case in cases.items()}


def attach_compressed(method: str, wrap, seed: int) -> str:
    model = build()
    masks = cw.bake(sparsified(build(seed), method="static"))
    if method == "granet":
        sparsifier = cw.sparsify(model, {"[57]": "block:4"}, density=0.3, method=METHODS[method], storage="compressed")
    else:
        sparsifier = cw.sparsify(model, {"[57]": "block:4"}, masks=masks, method=METHODS[method], storage="compressed")
    wrap(model)
    try:
        sparsifier.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    except ValueError as error:
        return str(error)
    return "nothing was said"


def sparsified(model: nn.Module, method: str) -> nn.Module:
    cw.sparsify(model, {"[57]": "block:4"}, density=0.3, init="magnitude", method=METHODS[method])
    return model


def two_forwards_then_backward() -> bool:
    """Say whether two forward passes before one backward, as with pairs of images, work."""
    model = build()
    sparsifier = cw.sparsify(model, "unstructured", density=0.3, method=METHODS["rigl"])
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    for step in range(4):
        x, y = batch_of(step)
        (F.cross_entropy(wrapped(x), y) + wrapped(x.flip(3)).square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return sparsifier.steps_done == 4


def checkpoint_and_resume(folder: Path) -> dict:
    """Save a sharded run after five of nine steps with torch.distributed.checkpoint; go on in a new model."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    runs = []
    for steps in (range(5), range(5, STEPS)):
        model = build()
        sparsifier = cw.sparsify(model, "block:4", density=0.3, method=METHODS["rigl"])
        shard(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        sparsifier.attach(optimizer)
        if runs:
            # This makes the optimizer take a step of its own, which counts for nothing.
            model_state, optimizer_state = get_state_dict(model, optimizer)
            dcp.load({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder)
            set_state_dict(model, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state)
        for step in steps:
            x, y = (tensor.chunk(NUM_RANKS)[dist.get_rank()] for tensor in batch_of(step))
            F.cross_entropy(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if not runs:
            model_state, optimizer_state = get_state_dict(model, optimizer)
            dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder)
        runs.append(sparsifier.state_dict())
    return {
        "weights": {name: whole(parameter.detach()) for name, parameter in model.named_parameters()},
        "masks": {name: layer.sparsity.mask for name, layer in sparsifier.layers.items()},
        "steps": runs,
    }


def runs(folder: Path) -> dict:
    """Return every run that two ranks make together."""
    part = (dist.get_rank(), NUM_RANKS)
    return {
        **{("ddp", *case): functools.partial(train, *case, wrap=DistributedDataParallel, part=part) for case in CASES},
        **{("fsdp", *case): functools.partial(train, *case, wrap=shard, part=part) for case in CASES},
        **{
            ("half", *case): functools.partial(train, *case, wrap=shard_in_half_precision, part=part)
            for case in HALF_CASES
        },
        ("compiled", "rigl"): functools.partial(train, "rigl", "block:4", wrap=compile_under_ddp, part=part),
        ("accumulated", "rigl"): functools.partial(
            train, "rigl", "block:4", wrap=DistributedDataParallel, part=part, micro_batches=4
        ),
        ("accumulated", "rigl by estimate"): functools.partial(
            train, "rigl by estimate", "block:4", wrap=DistributedDataParallel, part=part, micro_batches=4
        ),
        "different seeds": functools.partial(
            train, "rigl", "unstructured", wrap=DistributedDataParallel, part=part, seed=dist.get_rank()
        ),
        "different masks, sharded": functools.partial(attach_with_masks_of_different_seeds, shard),
        "different masks, not broadcast": functools.partial(
            attach_with_masks_of_different_seeds,
            functools.partial(DistributedDataParallel, broadcast_buffers=False),
        ),
        **{
            ("compressed", *case): functools.partial(
                train, *case, wrap=DistributedDataParallel, part=part, layers="[57]", storage="compressed"
            )
            for case in COMPRESSED_CASES
        },
        ("compressed", "accumulated"): functools.partial(
            train,
            "rigl",
            "block:4",
            wrap=DistributedDataParallel,
            part=part,
            layers="[57]",
            storage="compressed",
            micro_batches=4,
        ),
        ("compressed", "sharded"): functools.partial(
            train, "static", "block:4", wrap=shard, part=part, layers="[57]", storage="compressed"
        ),
        **{
            ("chance", how): functools.partial(
                train, "rigl", "block:4", wrap=wrap, part=part, layers="[57]", storage=storage, with_chance=True
            )
            for how, (wrap, storage) in {
                "ddp": (DistributedDataParallel, "dense"),
                "fsdp": (shard, "dense"),
                "compressed": (DistributedDataParallel, "compressed"),
            }.items()
        },
        "compressed, refused": compressed_and_refused,
        "two forwards": two_forwards_then_backward,
        "checkpoint": functools.partial(checkpoint_and_resume, folder / "checkpoint"),
    }


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> list[dict]:
    """Return, for each rank, what came out of every run."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(NUM_RANKS)]
    done = subprocess.run(
        [*torchrun, __file__, folder],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(NUM_RANKS)]


def of_both(outcomes: list[dict], name) -> list:
    results = [outcome[name] for outcome in outcomes]
    for result in results:
        assert not (isinstance(result, str) and result.startswith("Traceback")), result
    return results


def check_equal(one: dict, other: dict, **tolerance: float) -> None:
    """Check that two runs ended alike; to the bit unless there is a tolerance, but masks always."""
    for part in one.keys() & other.keys():
        assert one[part].keys() == other[part].keys()
        for name, value in one[part].items():
            exact = {"rtol": 0, "atol": 0} if part == "masks" or not tolerance else tolerance
            torch.testing.assert_close(value, other[part][name], **exact, msg=lambda text, name=name: f"{name}: {text}")


@functools.cache
def in_one_process(method: str, pattern: str, micro_batches: int = 1) -> dict:
    return train(method, pattern, micro_batches=micro_batches)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize(("method", "pattern"), CASES)
def test_ranks_end_equal_to_the_bit(outcomes, way, method, pattern):
    check_equal(*of_both(outcomes, (way, method, pattern)))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize(("method", "pattern"), CASES)
def test_two_ranks_train_what_one_process_trains_on_the_joined_batch(outcomes, way, method, pattern):
    two = of_both(outcomes, (way, method, pattern))[0]
    one = in_one_process(method, pattern)
    assert any(turnover > 0 for turnover in one["turnover"].values())
    check_equal(one, two, rtol=1e-7, atol=1e-10)
    if method not in {"supermask", "spartan", "srste", "dense at first"}:
        for name, mask in two["masks"].items():
            assert not two["weights"][f"{name}.weight"][~mask].any()
            assert not two["state"][f"{name}.weight.exp_avg"][~mask].any()


@pytest.mark.parametrize(("method", "pattern"), CASES)
def test_four_micro_batches_train_what_one_batch_trains(method, pattern):
    check_equal(in_one_process(method, pattern), in_one_process(method, pattern, 4), rtol=1e-7, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "pattern"), HALF_CASES)
def test_sharded_ranks_that_compute_in_half_precision_end_equal_to_the_bit(outcomes, method, pattern):
    results = of_both(outcomes, ("half", method, pattern))
    check_equal(*results)
    assert any(turnover > 0 for turnover in results[0]["turnover"].values())
    # Half precision ranks what grows a little differently, and each move builds on the one before; by chance a third of
    # them would agree, and rows that change groups take all that they keep along.
    masks, expected = results[0]["masks"], in_one_process(method, pattern)["masks"]
    assert sum(int((masks[name] & expected[name]).sum()) for name in masks) > 0.7 * sum(
        int(mask.sum()) for mask in expected.values()
    )


@pytest.mark.slow
def test_a_compiled_model_under_ddp_trains_what_the_eager_one_trains(outcomes):
    results = of_both(outcomes, ("compiled", "rigl"))
    check_equal(*results)
    check_equal(in_one_process("rigl", "block:4"), results[0], rtol=1e-7, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rigl", "rigl by estimate"])
def test_micro_batches_without_synchronisation_train_what_one_batch_trains(outcomes, method):
    results = of_both(outcomes, ("accumulated", method))
    check_equal(*results)
    check_equal(in_one_process(method, "block:4"), results[0], rtol=1e-7, atol=1e-10)


@pytest.mark.slow
def test_ranks_with_different_seeds_take_over_the_masks_of_the_first(outcomes):
    results = of_both(outcomes, "different seeds")
    # The second rank counts its turnover from the mask that it had first.
    check_equal(*({part: result[part] for part in ("weights", "masks", "state")} for result in results))
    check_equal(in_one_process("rigl", "unstructured"), results[0], rtol=1e-7, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["sharded", "not broadcast"])
def test_ranks_with_different_masks_are_refused(outcomes, how):
    messages = of_both(outcomes, f"different masks, {how}")
    assert any("seed all ranks alike" in message for message in messages)


@pytest.mark.slow
def test_two_forwards_before_one_backward_work_under_ddp(outcomes):
    assert of_both(outcomes, "two forwards") == [True, True]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "pattern"), COMPRESSED_CASES)
def test_compressed_ranks_train_what_one_dense_process_trains(outcomes, method, pattern):
    results = of_both(outcomes, ("compressed", method, pattern))
    check_equal(*results)
    one = train(method, pattern, layers="[57]")
    assert any(turnover > 0 for turnover in one["turnover"].values())
    check_equal(one, results[0], rtol=1e-7, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp", "compressed"])
def test_first_masks_by_parts_of_a_batch_and_what_is_left_out_are_those_of_one_process(outcomes, how):
    first, second = of_both(outcomes, ("chance", how))
    check_equal(first, second)
    expected = train("rigl", "block:4", layers="[57]", with_chance=True)
    check_equal(first, expected, rtol=1e-6, atol=1e-8)
    plain = train("rigl", "block:4", layers="[57]")
    assert not torch.equal(expected["masks"]["5"], plain["masks"]["5"])


@pytest.mark.slow
@pytest.mark.parametrize(("how", "method"), [("accumulated", "rigl"), ("sharded", "static")])
def test_compressed_ranks_accumulate_and_shard_static_masks(outcomes, how, method):
    results = of_both(outcomes, ("compressed", how))
    check_equal(*results)
    check_equal(train(method, "block:4", layers="[57]"), results[0], rtol=1e-7, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("moving and sharded", "5 is compressed and sharded by fully_shard(), where only static masks work; got RigL"),
        ("dense in the end", "5 keeps 57 units now and will keep another number"),
        ("changing number", "5 keeps 95 units now and will keep another number"),
        ("different masks", "processes hold different masks of 5; seed all of them alike"),
    ],
)
def test_what_compressed_ranks_cannot_do_is_refused(outcomes, what, message):
    for result in of_both(outcomes, "compressed, refused"):
        assert message in result[what]


@pytest.mark.slow
def test_a_sharded_run_resumes_from_a_distributed_checkpoint(outcomes):
    results = of_both(outcomes, "checkpoint")
    uninterrupted = of_both(outcomes, ("fsdp", "rigl", "block:4"))
    assert results[0]["steps"] == [{"steps_done": 5}, {"steps_done": 9}]
    for result, expected in zip(results, uninterrupted, strict=True):
        for part in ("weights", "masks"):
            check_equal({part: expected[part]}, {part: result[part]})


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    results = {}
    for name, run in runs(folder).items():
        try:
            results[name] = run()
        except Exception:
            results[name] = traceback.format_exc()
    torch.save(results, folder / f"rank{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
