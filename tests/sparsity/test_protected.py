"""No average, cast or foreign loader changes a mask or an index unnoticed."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

import cutwork as cw
from cutwork.sparsity.protected import Protected, plain, protect

STORAGES = ["dense", "compressed"]
# As those of timm and of many a training script do it: over the state dict, or over parameters and buffers.
AVERAGES = ["state dict", "lerp or copy", "buffers ema", "buffers swa", "lightning", "no buffers", "function"]


def build(storage="dense", pattern="block:4", method="static", **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 8))
    return model, cw.sparsify(model, pattern, density=0.3, method=method, storage=storage, **options)


class Average:
    """An average of a model in one of the ways in which people make them."""

    def __init__(self, model, how):
        self.how, self.module = how, copy.deepcopy(model)
        options = {
            "buffers ema": {"multi_avg_fn": get_ema_multi_avg_fn(0.7), "use_buffers": True},
            "buffers swa": {"multi_avg_fn": get_swa_multi_avg_fn(), "use_buffers": True},
            # Its default, and that of PyTorch.
            "lightning": {"use_buffers": True},
            "function": {"avg_fn": lambda a, m, n: 0.7 * a + 0.3 * m, "use_buffers": True},
            "no buffers": {},
        }
        if how in options:
            self.average = AveragedModel(model, **options[how])
            self.module = self.average.module

    @torch.no_grad()
    def update(self, model):
        if self.how == "state dict":
            for mine, yours in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
                mine.copy_(0.7 * mine + (1.0 - 0.7) * yours)
        elif self.how == "lerp or copy":
            for mine, yours in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
                if mine.is_floating_point():
                    mine.lerp_(yours, 0.3)
                else:
                    mine.copy_(yours)
        else:
            self.average.update_parameters(model)


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(6, 24)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("pattern", ["block:4", "shuffled:4"])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("how", AVERAGES)
def test_an_average_of_a_model_that_does_not_train_is_that_model(how, storage, pattern):
    model, _ = build(storage, pattern)
    average, x = Average(model, how), torch.randn(5, 24)
    for _ in range(4):
        average.update(model)
    torch.testing.assert_close(average.module(x), model(x))
    for mine, yours in zip(average.module[0].sparsity.buffers(), model[0].sparsity.buffers(), strict=True):
        assert torch.equal(plain(mine), plain(yours))


@pytest.mark.parametrize("how", AVERAGES)
def test_the_mask_of_an_average_in_dense_storage_follows_and_is_no_union(how):
    model, sparsifier = build("dense", method=cw.set_(every=1, until=9))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    average = Average(model, how)
    for _ in range(4):
        train(model, optimizer, 1)
        average.update(model)
    first = average.module[0].sparsity
    assert torch.equal(first.mask, model[0].sparsity.mask) and first.pattern.allows(first.mask)


@pytest.mark.parametrize("how", AVERAGES)
def test_an_average_that_a_compressed_mask_has_left_behind_is_refused_at_the_first_update(how):
    model, sparsifier = build("compressed", method=cw.set_(every=2, until=9))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    average = Average(model, how)
    train(model, optimizer, 1)
    average.update(model)
    train(model, optimizer, 1)
    with pytest.raises(ValueError, match=r"32x24 weight in block:4 differs in the models .* sparsifier.take_along"):
        average.update(model)


@pytest.mark.parametrize("how", AVERAGES)
@pytest.mark.parametrize("method", [cw.set_(every=2, until=9), cw.Gradual(every=2, until=8)], ids=["set", "gradual"])
def test_an_average_that_moves_along_is_the_one_of_dense_storage(how, method):
    outputs = []
    for storage in STORAGES:
        model, sparsifier = build(storage, method=method)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        sparsifier.attach(optimizer)
        average = Average(model, how)
        sparsifier.take_along(average.module)
        torch.manual_seed(1)
        for _ in range(8):
            train(model, optimizer, 1)
            average.update(model)
        assert torch.equal(average.module[0].sparsity.mask, model[0].sparsity.mask)
        outputs.append(average.module(torch.ones(2, 24)))
    torch.testing.assert_close(*outputs)


def test_an_average_is_taken_along_through_what_wraps_it_and_only_if_it_is_one():
    model, sparsifier = build("compressed", method=cw.set_(every=2, until=9))
    sparsifier.take_along(AveragedModel(model))
    sparsifier.take_along(nn.ModuleDict({"inner": nn.ModuleDict({"model": copy.deepcopy(model)})}))
    with pytest.raises(ValueError, match="no sparse layers by the names of the model's, such as 0"):
        sparsifier.take_along(nn.Sequential(nn.Linear(24, 32)))
    other, _ = build("compressed", init="random", seed=3)
    with pytest.raises(ValueError, match="0 has another mask in the average"):
        sparsifier.take_along(other)


def test_casts_and_moves_leave_masks_and_indices():
    for storage in STORAGES:
        model, _ = build(storage)
        before = model[0].sparsity.mask.clone()
        model.half().double().bfloat16().float().to("cpu")
        assert torch.equal(model[0].sparsity.mask, before)
        assert model(torch.randn(2, 24)).isfinite().all()


def test_an_index_that_was_damaged_in_place_is_refused_before_a_kernel_reads_it():
    model, _ = build("compressed")
    x = torch.randn(2, 24)
    model(x)
    model[0].sparsity.col[0] = 24
    with pytest.raises(ValueError, match="32x24 weight in block:4 was changed from outside and is damaged: col holds"):
        model(x)
    model, _ = build("compressed")
    # As accelerate's loader does it.
    model[0].sparsity._buffers["ptr"] = torch.full_like(plain(model[0].sparsity.ptr), 7)
    with pytest.raises(ValueError, match="was changed from outside and is damaged"):
        model(x)


def test_a_mask_that_a_loader_replaces_is_the_mask():
    model, _ = build("dense")
    other = ~model[0].sparsity.mask
    model[0].sparsity._buffers["mask"] = other.clone()
    assert torch.equal(model[0].sparsity.mask, other)
    model[0].sparsity.mask = ~other
    assert torch.equal(model[0].sparsity.mask, ~other)
    model[0].sparsity._buffers["mask"].data = other.clone()
    assert torch.equal(model[0].sparsity.mask, other)


def test_a_state_dict_can_be_edited_saved_and_read_without_cutwork():
    model, _ = build("compressed", "shuffled:4")
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state["0.sparsity.order"][0] = 5
    assert int(state["0.sparsity.order"][0]) == 5
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert {type(value) for value in loaded.values()} == {torch.Tensor}
    assert type(pickle.loads(pickle.dumps(model[0].sparsity.ptr))) is torch.Tensor


def test_the_states_of_two_models_can_be_exchanged():
    for storage in STORAGES:
        (one, _), (other, _) = build(storage), build(storage, init="random", seed=3)
        x = torch.randn(3, 24)
        assert not torch.equal(one(x), other(x))
        one.load_state_dict(other.state_dict())
        assert torch.equal(one(x), other(x))


def test_a_protected_tensor_reads_like_any_other():
    mask = torch.tensor([True, False, True])
    shown = protect(mask, "a mask", may_follow=True)
    assert isinstance(shown, Protected) and type(plain(shown)) is torch.Tensor
    assert int(shown.sum()) == 2 and (~shown).tolist() == [False, True, False]
    assert (shown * 2.0).tolist() == [2.0, 0.0, 2.0] and torch.equal(shown.float().mean(), torch.tensor(2 / 3))
    assert torch.ones(3)[shown].shape == (2,) and repr(copy.deepcopy(shown)).startswith("Protected(")
    with pytest.raises(ValueError, match="add_ would mix other numbers into a mask"):
        shown.add_(torch.tensor([True, True, True]))
