"""Mixed precision, loss scaling, clipping and averaged weights do not notice that masks move, nor move them."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import cutwork as cw
from cutwork.methods import Method
from cutwork.sparsity.fixed import Fixed

pytestmark = pytest.mark.grid

DYNAMIC: dict[str, Method] = {
    "rigl": cw.RigL(every=2, until=20),
    "rigl by estimate": cw.RigL(every=2, until=20, estimate=True),
    "srigl": cw.SRigL(every=2, until=20),
    "granet": cw.GraNet(every=2, until=20, thin_until=9),
    "supermask": cw.Supermask(),
    "spartan": cw.Spartan(thin_until=2, until=5, start_sharpness=50, sharpness=500),
    "srste": cw.srste(decay=0.1),
}
OPTIMIZERS = {
    "adamw": lambda parameters, **options: torch.optim.AdamW(parameters, lr=1e-2, **options),
    "sgd": lambda parameters, **options: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, **options),
}


def build(method: str | Method, dtype: torch.dtype = torch.float32) -> tuple[nn.Sequential, cw.Sparsifier]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 10),
    ).to(dtype)  # fmt: skip
    chosen = DYNAMIC[method] if isinstance(method, str) else method
    return model, cw.sparsify(model, "unstructured", density=0.1, method=chosen, track=True)


def batch_of(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 3, 8, 8, generator=generator), torch.randint(0, 10, (16,), generator=generator)


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    x, y = batch_of(step)
    dtype = next(model.parameters()).dtype
    return nn.functional.cross_entropy(model(x.to(dtype)).float(), y)


def masks_of(sparsifier: cw.Sparsifier) -> dict[str, torch.Tensor]:
    return {name: layer.sparsity.mask.clone() for name, layer in sparsifier.layers.items()}


def check_same(one: nn.Module, other: nn.Module) -> None:
    others = other.state_dict()
    for name, value in one.state_dict().items():
        assert torch.equal(value, others[name]), name


@pytest.mark.parametrize("method", DYNAMIC)
def test_autocast_trains_and_moves_masks(method):
    model, sparsifier = build(method)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    sparsifier.attach(optimizer)
    first = masks_of(sparsifier)
    losses = []
    for _ in range(20):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    assert any(not torch.equal(mask, first[name]) for name, mask in masks_of(sparsifier).items())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("method", DYNAMIC)
@pytest.mark.parametrize("overflows", [(2,), (3, 4)], ids=["in a step that listens", "before and in one"])
def test_a_skipped_step_never_happened(method, optimizer_name, fused, overflows):
    """Fused optimizers are called in a step that is skipped, with a flag; for others the scaler leaves the call out."""
    runs = []
    for skipping in (True, False):
        model, sparsifier = build(method)
        optimizer = OPTIMIZERS[optimizer_name](model.parameters(), fused=fused)
        sparsifier.attach(optimizer)
        # Growth would double the scale, and backing off would halve it, in one of the two runs only.
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10_000, backoff_factor=1 - 2**-53)
        for step in range(7):
            if skipping and step in overflows:
                before = copy.deepcopy(model)
                (scaler.scale(loss_of(model, 100 + step)) * torch.inf).backward()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                check_same(before, model)
                assert sparsifier.steps_done == step
            scaler.scale(loss_of(model, step)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        runs.append((model, sparsifier))
    (model, sparsifier), (twin, twins_sparsifier) = runs
    check_same(model, twin)
    assert sparsifier.steps_done == twins_sparsifier.steps_done == 7


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("method", DYNAMIC)
def test_the_loss_scale_changes_nothing(method, fused):
    """Scales are powers of two, so that in single precision even the weights come out equal to the bit."""
    models = []
    for scale in (1.0, 2.0**6, 2.0**16):
        model, sparsifier = build(method)
        optimizer = OPTIMIZERS["adamw"](model.parameters(), fused=fused)
        sparsifier.attach(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10_000)
        for step in range(7):
            scaler.scale(loss_of(model, step)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        models.append(model)
    for model in models[1:]:
        check_same(models[0], model)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscale", [False, True])
def test_the_decay_of_srste_is_right_under_a_loss_scale(fused, unscale):
    model, sparsifier = build("srste")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    sparsifier.attach(optimizer)
    expected = {}
    loss_of(model, 0).backward()
    for name, layer in sparsifier.layers.items():
        outside = torch.where(layer.sparsity.mask, 0, layer.weight.detach())
        expected[name] = layer.weight.detach() - 0.1 * (layer.weight.grad + 0.1 * outside)
    optimizer.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    scaler.scale(loss_of(model, 0)).backward()
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    for name, layer in sparsifier.layers.items():
        torch.testing.assert_close(layer.weight.detach(), expected[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("method", DYNAMIC)
def test_clipping_sees_the_norm_of_the_masked_gradient_in_every_step(method, dtype):
    model, sparsifier = build(method, dtype)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    sparsifier.attach(optimizer)
    for step in range(6):
        quiet = silent_copy(model)
        loss_of(model, step).backward()
        loss_of(quiet, step).backward()
        whispering = nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 0.5)
        expected = nn.utils.get_total_norm([p.grad for p in quiet.parameters() if p.grad is not None])
        torch.testing.assert_close(whispering, expected, rtol=1e-6, atol=0)
        optimizer.step()
        optimizer.zero_grad()


def silent_copy(model: nn.Module) -> nn.Module:
    """Return a copy of the model that listens to no gradient outside its masks."""
    quiet = copy.deepcopy(model)
    for name, module in quiet.named_modules():
        if name.endswith("sparsity") and isinstance(module, Fixed):
            module.expect_gradient(quiet.get_submodule(name.removesuffix(".sparsity")).weight, False)
    return quiet


def test_clipping_notices_the_whisper_of_half_precision_by_a_thousandth_at_most():
    model, sparsifier = build("rigl", torch.float16)
    sparsifier.attach(OPTIMIZERS["sgd"](model.parameters()))
    sparsifier.load_state_dict(sparsifier.state_dict() | {"steps_done": 1})
    quiet = silent_copy(model)
    (loss_of(model, 0) * 256).backward()
    (loss_of(quiet, 0) * 256).backward()
    heard, expected = (nn.utils.get_total_norm([p.grad.float() for p in one.parameters()]) for one in (model, quiet))
    assert 1 < heard / expected < 1 + 2e-3


@pytest.mark.parametrize("cast_first", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", DYNAMIC)
def test_parameters_of_other_types_grow_where_single_precision_grows(method, dtype, cast_first):
    """The gradient outside the mask is as precise as the type allows, whether the model is cast early or late."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48)).to(dtype).float()
    copies = [model, copy.deepcopy(model).to(dtype) if cast_first else copy.deepcopy(model)]
    x = torch.randn(32, 64).to(dtype)
    masks = []
    for one, kind in zip(copies, (torch.float32, dtype), strict=True):
        sparsifier = cw.sparsify(one, "unstructured", density=0.1, method=DYNAMIC[method])
        if not cast_first:
            one.to(kind)
        optimizer = torch.optim.SGD(one.parameters(), lr=1e-3)
        if dtype == torch.float16 and not cast_first and method == "rigl by estimate" and one is copies[1]:
            with pytest.raises(ValueError, match=r"^0: it was turned to float16 after sparsify\(\), too narrow"):
                sparsifier.attach(optimizer)
            return
        sparsifier.attach(optimizer)
        for _ in range(2):
            one(x.to(kind)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        masks.append(one[0].sparsity.mask)
        assert one[0].weight.dtype == kind
    agreement = (masks[0] & masks[1]).sum() / masks[0].sum()
    assert agreement > 0.95


@pytest.mark.parametrize("use_buffers", [False, True])
def test_averaged_weights_of_a_static_mask_are_zero_outside_it(use_buffers):
    model, sparsifier = build(cw.Static())
    average = trained_average(model, sparsifier, use_buffers=use_buffers)
    for name, layer in sparsifier.layers.items():
        twin = average.module.get_submodule(name)
        assert torch.equal(twin.sparsity.mask, layer.sparsity.mask)
        assert not twin.weight[~layer.sparsity.mask].any()
        assert twin.weight[layer.sparsity.mask].all()


@pytest.mark.parametrize("method", ["rigl", "srigl", "granet"])
def test_an_average_over_moves_remembers_dropped_weights_but_does_not_use_them(method):
    """Its mask is the latest; `bake` zeroes what the average still holds outside, and changes no output."""
    model, sparsifier = build(method)
    average = trained_average(model, sparsifier, steps=9)
    x, _ = batch_of(0)
    before = average(x)
    assert any(twin.weight[~twin.sparsity.mask].any() for twin in sparse_twins(average, sparsifier))
    assert not any(twin.sparsity(twin.weight)[~twin.sparsity.mask].any() for twin in sparse_twins(average, sparsifier))
    assert all(
        torch.equal(twin.sparsity.mask, layer.sparsity.mask)
        for twin, layer in zip(sparse_twins(average, sparsifier), sparsifier.layers.values(), strict=True)
    )
    cw.bake(average.module)
    assert torch.equal(average(x), before)


def trained_average(
    model: nn.Module, sparsifier: cw.Sparsifier, *, steps: int = 5, use_buffers: bool = False
) -> AveragedModel:
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    sparsifier.attach(optimizer)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=use_buffers)
    for step in range(steps):
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
    return average


def sparse_twins(average: AveragedModel, sparsifier: cw.Sparsifier) -> list[nn.Module]:
    return [average.module.get_submodule(name) for name in sparsifier.layers]
