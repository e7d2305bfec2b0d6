import copy

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.layers.compressed import Compressed


def packed(model, pattern="block:4", **options):
    torch.manual_seed(0)
    cw.sparsify(model, pattern, density=0.4, **options)
    cw.pack(model, forms="tiles")
    return model


class Mlp(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.fc1, self.act, self.drop, self.fc2 = nn.Linear(12, 32), activation, nn.Dropout(0.0), nn.Linear(32, 8)

    def forward(self, x):
        return self.fc2(self.drop(self.act(self.fc1(x))))


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.bn2 = nn.BatchNorm2d(channels, affine=False)
        self.act2 = nn.ReLU()

    def forward(self, x):
        return self.act2(self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x))))) + x)


def with_statistics(model):
    """Give batch norms something to have learned."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, -2, 2)
                nn.init.uniform_(module.bias)
    return model


@pytest.mark.parametrize("pattern", ["block:4", "shuffled:4", "block:5x3"])
@pytest.mark.parametrize(
    "activation", [nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(), nn.ReLU(inplace=True)], ids=repr
)
def test_an_activation_before_a_compressed_layer_is_done_by_it_and_trains_alike(activation, pattern):
    model = packed(Mlp(activation), pattern)
    twin, x = copy.deepcopy(model), torch.randn(5, 12)
    fusions = cw.fuse(model, x)
    assert [str(fusion) for fusion in fusions] == [f"act ({type(activation).__name__}) is done by fc2, before"]
    assert isinstance(model.act, nn.Identity)
    torch.testing.assert_close(model(x), twin(x))
    assert model.state_dict().keys() == twin.state_dict().keys()
    model(x).square().sum().backward()
    twin(x).square().sum().backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_masks_move_as_without_fusion():
    models = []
    for is_fused in (False, True):
        torch.manual_seed(0)
        model = Mlp(nn.GELU()).double()
        method = cw.RigL(every=2, until=8)
        sparsifier = cw.sparsify(model, "block:4", density=0.4, method=method, storage="compressed")
        x = torch.randn(16, 12).double()
        if is_fused:
            assert cw.fuse(model, x)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        sparsifier.attach(optimizer)
        for _ in range(6):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
        models.append(model)
    for one, other in zip(*(model.state_dict().values() for model in models), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("pattern", ["block:4", "shuffled:4"])
def test_batch_norms_become_part_of_the_values_where_nothing_trains(pattern):
    model = packed(with_statistics(nn.Sequential(Block(8), Block(8))), pattern).eval()
    twin, x = copy.deepcopy(model), torch.randn(2, 8, 6, 5)
    fusions = cw.fuse(model, x)
    assert {(fusion.module, fusion.when) for fusion in fusions} == {
        (f"{block}.{part}", when)
        for block in (0, 1)
        for part, when in (("bn1", "in its values"), ("act1", "after"), ("bn2", "in its values"))
    }
    with torch.no_grad():
        torch.testing.assert_close(model(x), twin(x), rtol=1e-4, atol=1e-5)
    assert "after=relu" in repr(model[0].conv1)
    torch.testing.assert_close(model(x), twin(x), rtol=1e-4, atol=1e-5)


def test_batch_norms_that_still_learn_are_not_multiplied_into_values():
    model = packed(with_statistics(Block(8))).train()
    before = copy.deepcopy(model.state_dict())
    assert [str(fusion) for fusion in cw.fuse(model, torch.randn(2, 8, 6, 5))] == ["act1 (ReLU) is done by bn1, after"]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.training


class ReadTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)

    def forward(self, x):
        h = self.fc1(x)
        a = self.act(h)
        return self.fc2(a) + a + h


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(self.act(x))))


class Returned(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.act = nn.Linear(8, 8), nn.GELU()

    def forward(self, x):
        h = self.fc1(x)
        return self.act(h), h


@pytest.mark.parametrize("kind", [ReadTwice, Shared, Returned])
def test_what_somebody_else_reads_too_is_left_alone(kind):
    model = packed(kind())
    assert cw.fuse(model, torch.randn(3, 8)) == ()


def test_an_activation_after_the_last_layer_is_done_by_that():
    model = packed(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    twin, x = copy.deepcopy(model), torch.randn(3, 8)
    assert [str(fusion) for fusion in cw.fuse(model, x)] == ["1 (ReLU) is done by 0, after"]
    torch.testing.assert_close(model(x), twin(x))
    with torch.no_grad():
        torch.testing.assert_close(model(x), twin(x))


def test_dense_layers_are_left_alone():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    cw.sparsify(model, {"*": "dense", "2": "block:4"}, density=0.5)
    cw.pack(model, forms="tiles")
    fusions = cw.fuse(model, torch.randn(3, 8))
    assert [fusion.layer for fusion in fusions] == ["2", "2"]
    assert not isinstance(model[0], Compressed)


def test_a_model_without_compressed_layers_or_inputs_is_refused():
    with pytest.raises(ValueError, match="no compressed layer; pack"):
        cw.fuse(nn.Sequential(nn.Linear(4, 4)), torch.ones(1, 4))
    with pytest.raises(ValueError, match="pass its inputs"):
        cw.fuse(packed(nn.Sequential(nn.Linear(8, 8))))


def test_dropout_between_an_activation_and_a_layer_parts_them_while_it_drops():
    model = packed(Mlp(nn.GELU()))
    model.drop.p = 0.5
    x = torch.randn(3, 12)
    assert [fusion.when for fusion in cw.fuse(copy.deepcopy(model), x)] == ["after"]
    assert [fusion.when for fusion in cw.fuse(model.eval(), x)] == ["before"]


def test_a_fused_layer_cannot_go_back_to_dense_storage():
    model = packed(Mlp(nn.GELU()))
    cw.fuse(model, torch.randn(3, 12))
    for undo in (cw.unpack, cw.bake):
        with pytest.raises(ValueError, match=r"fc2: fuse\(\) gave it an activation, .* unpack\(\) a copy made before"):
            undo(model)
    assert isinstance(model.fc1, Compressed)


def test_a_fused_layer_stays_as_it_is_in_a_plan():
    model = packed(Mlp(nn.GELU()))
    x = torch.randn(3, 12)
    cw.fuse(model, x)
    row = cw.plan(model, x, cache=False, seconds=0.01).rows[1]
    assert row.form == "tiles"
    assert "fuse() gave it an activation" in row.reason


class Residual(nn.Module):
    """A block as torchvision has them: one ReLU for all, and a sum in place."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = 1

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.downsample(x)
        return self.relu(out)


def residual_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), Residual(8), Residual(8))
    cw.sparsify(model, {"*conv*": "block:4"}, density=0.4, storage="compressed")
    return model, torch.randn(4, 3, 9, 9)


def test_batch_norms_in_training_take_along_sums_and_activations():
    model, x = residual_model()
    twin, parameters = copy.deepcopy(model), list(model.parameters())
    assert [str(fusion) for fusion in cw.fuse(model, x)] == [
        "2 (SiLU) is done by 1, after",
        "3 (ReLU) is done by 3.bn1, after",
        "3 (sum and ReLU) is done by 3.bn2, after",
        "4 (ReLU) is done by 4.bn1, after",
        "4 (sum and ReLU) is done by 4.bn2, after",
    ]
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in twin.named_parameters()]
    assert list(model.state_dict()) == list(twin.state_dict())
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert model[3].stride == 1
    for one, other in ((model, twin), (copy.deepcopy(model), copy.deepcopy(twin))):
        for each in (one, other):
            optimizer = torch.optim.SGD(each.parameters(), lr=1e-3, momentum=0.9)
            for _ in range(3):
                optimizer.zero_grad()
                each(x).square().mean().backward()
                optimizer.step()
        for key, value in other.state_dict().items():
            torch.testing.assert_close(one.state_dict()[key], value, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model.eval()(x), twin.eval()(x), rtol=1e-3, atol=1e-4)


def test_a_model_with_fused_batch_norms_is_saved_loaded_and_compiled(tmp_path):
    model, x = residual_model()
    twin = copy.deepcopy(model)
    cw.fuse(model, x)
    cw.save(model, tmp_path / "model.safetensors")
    cw.load(tmp_path / "model.safetensors", twin)
    torch.save(model, tmp_path / "pickled.pt")
    pickled = torch.load(tmp_path / "pickled.pt", weights_only=False)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    expected = twin(x)
    for each in (model, pickled, compiled):
        torch.testing.assert_close(each(x), expected, rtol=1e-4, atol=1e-4)


class InEvaluationOtherwise(Residual):
    def forward(self, x):
        y = super().forward(x)
        return y if self.training else y * 2


class IntoTheResidual(Residual):
    def forward(self, x):
        h = other = self.conv1(x)
        h += self.bn2(self.conv2(x))
        return h * other * self.bn1(x)


@pytest.mark.parametrize("kind", [InEvaluationOtherwise, IntoTheResidual])
def test_a_block_whose_code_must_stay_is_left_alone(kind):
    model = nn.Sequential(kind(8))
    cw.sparsify(model, {"*conv*": "block:4"}, density=0.4, storage="compressed")
    assert cw.fuse(model, torch.randn(4, 8, 9, 9)) == ()
    assert type(model[0]) is kind


def test_synchronised_batch_norms_are_left_alone():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(residual_model()[0])
    types = [type(module) for module in model.modules()]
    # It runs in evaluation here, since synchronising takes processes.
    assert cw.fuse(model, torch.randn(4, 3, 9, 9)) == ()
    assert [type(module) for module in model.modules()] == types
