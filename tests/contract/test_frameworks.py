"""Training loops and models that others wrote: `attach` is enough for the first, nothing is needed for the second."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.methods import Method

pytestmark = [pytest.mark.slow, pytest.mark.grid]

METHODS: dict[str, Method] = {
    "rigl": cw.RigL(every=2, until=11),
    "rigl by estimate": cw.RigL(every=2, until=11, estimate=True),
    "supermask": cw.Supermask(),
    "srste": cw.srste(),
}
STEPS, STOP = 12, 5


def check_same(one: nn.Module, other: nn.Module, **tolerance: float) -> None:
    others = other.state_dict()
    assert one.state_dict().keys() == others.keys()
    for name, value in one.state_dict().items():
        exact = {"rtol": 0, "atol": 0} if value.dtype == torch.bool or not tolerance else tolerance
        torch.testing.assert_close(value, others[name], **exact, msg=lambda text, name=name: f"{name}: {text}")


def llama(**options) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, bos_token_id=1, eos_token_id=2, **options,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def sentences(number: int) -> list[dict[str, torch.Tensor]]:
    tokens = torch.randint(3, 64, (number, 16), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": line, "labels": line} for line in tokens]


class HuggingFace:
    """A run of the Trainer of transformers, which accumulates, clips and schedules, and knows nothing of masks."""

    def __init__(self, folder: Path, method: str, *, micro_batches: int = 2, tied: bool = False):
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("accelerate")
        self.model = llama(tie_word_embeddings=tied)
        self.sparsifier = cw.sparsify(
            self.model, {"model.layers.*": "block:4"}, density=0.3, method=METHODS[method], track=True
        )
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.sparsifier.attach(optimizer)
        arguments = transformers.TrainingArguments(
            output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=4 // micro_batches,
            gradient_accumulation_steps=micro_batches, max_grad_norm=0.5, learning_rate=1e-2, save_steps=STOP,
            use_cpu=True, report_to=[], disable_tqdm=True, seed=0, logging_strategy="no",
        )  # fmt: skip
        self.trainer = transformers.Trainer(
            self.model, arguments, train_dataset=sentences(60), optimizers=(optimizer, None)
        )

    def train(self, checkpoint: Path | None = None) -> "HuggingFace":
        with warnings.catch_warnings():
            # pin_memory without an accelerator, and the like: advice of the Trainer to its user.
            warnings.simplefilter("ignore")
            self.trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        return self


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_the_hugging_face_trainer_resumes_from_its_own_checkpoint(method, tied, tmp_path):
    whole = HuggingFace(tmp_path / "whole", method, tied=tied).train()
    assert whole.sparsifier.steps_done == STEPS
    assert any(any(seen.turnovers) for seen in whole.sparsifier.exploration.values())
    if method.startswith("rigl"):
        for layer in whole.sparsifier.layers.values():
            assert not layer.weight[~layer.sparsity.mask].any()
    resumed = HuggingFace(tmp_path / "resumed", method, tied=tied)
    resumed.train(tmp_path / "whole" / f"checkpoint-{STOP}")
    assert resumed.sparsifier.steps_done == STEPS
    check_same(whole.model, resumed.model)
    for name, seen in whole.sparsifier.exploration.items():
        assert resumed.sparsifier.exploration[name].turnovers == seen.turnovers


@pytest.mark.parametrize("method", METHODS)
def test_the_hugging_face_trainer_accumulates_to_the_same_masks(method, tmp_path):
    runs = [HuggingFace(tmp_path / str(number), method, micro_batches=number).train() for number in (1, 4)]
    assert [run.sparsifier.steps_done for run in runs] == [STEPS, STEPS]
    # Adam divides by what is nearly zero at first, so rounding shows in the third digit.
    check_same(*(run.model for run in runs), rtol=2e-2, atol=2e-3)


def test_an_output_layer_tied_to_the_embedding_is_refused():
    with pytest.raises(
        ValueError, match=r"lm_head: it shares its weight with model\.embed_tokens \(Embedding\), which"
    ) as error:
        cw.sparsify(llama(tie_word_embeddings=True), "block:4", density=0.3)
    assert "make both sparse" not in str(error.value)
    assert "{'lm_head': 'dense'}" in str(error.value)
    assert "lm_head" in cw.sparsify(llama(tie_word_embeddings=False), "block:4", density=0.3).layers


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_lightning_resumes_from_its_own_checkpoint(method, tmp_path):
    whole = trained_by_lightning(tmp_path / "whole", method)
    resumed = trained_by_lightning(tmp_path / "resumed", method, tmp_path / "whole" / f"step={STOP}.ckpt")
    assert whole.sparsifier.steps_done == resumed.sparsifier.steps_done == STEPS
    assert any(any(seen.turnovers) for seen in whole.sparsifier.exploration.values())
    check_same(whole, resumed)


def trained_by_lightning(folder: Path, method: str, checkpoint: Path | None = None) -> nn.Module:
    """Return a LightningModule after a run of its Trainer, which calls the optimizer's step with a closure."""
    lightning = pytest.importorskip("lightning")
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.network = nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 32), nn.ReLU(),
                nn.Linear(32, 10),
            )  # fmt: skip
            self.sparsifier = cw.sparsify(self.network, "block:4", density=0.3, method=METHODS[method], track=True)

        def training_step(self, batch, number):
            x, y = batch
            return nn.functional.cross_entropy(self.network(x), y)

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
            self.sparsifier.attach(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2)}

    generator = torch.Generator().manual_seed(1)
    # Lightning does not skip the batches that were seen, so the checkpoint is at the end of an epoch.
    number = STOP * 2 * 4
    data = torch.utils.data.TensorDataset(
        torch.randn(number, 3, 8, 8, generator=generator), torch.randint(0, 10, (number,), generator=generator)
    )
    module = Classifier()
    trainer = lightning.Trainer(
        max_steps=STEPS, accelerator="cpu", accumulate_grad_batches=2, gradient_clip_val=0.5, logger=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, filename="{step}", every_n_train_steps=STOP, save_top_k=-1)],
    )  # fmt: skip
    with warnings.catch_warnings():
        # Advice on speed, about runs of a few steps.
        warnings.simplefilter("ignore")
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4), ckpt_path=checkpoint)
    return module


def vision_transformer() -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=3, num_classes=10
    )


def torchvision_resnet() -> nn.Module:
    return pytest.importorskip("torchvision").models.resnet18(num_classes=10)


def torchvision_transformer() -> nn.Module:
    model = pytest.importorskip("torchvision").models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=3, hidden_dim=48, mlp_dim=96, num_classes=10
    )
    # It starts at zero and would let no gradient through in the first step.
    nn.init.xavier_uniform_(model.heads.head.weight)
    return model


def gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip


MODELS = {
    "timm vision transformer": (vision_transformer, {"*": "block:8", "head": "dense"}),
    "torchvision resnet18": (torchvision_resnet, {"*": "shuffled:8x1", "conv1": "dense", "fc": "dense"}),
    "torchvision vision transformer": (torchvision_transformer, {"encoder.*": "2:4"}),
    "transformers llama": (llama, {"model.layers.*": "block:4"}),
    "transformers gpt2": (gpt2, {"transformer.h.*": "block:8x4"}),
}
NUM_SPARSE = {
    "timm vision transformer": 1 + 2 * 4,
    "torchvision resnet18": 19,
    "torchvision vision transformer": 2 * 6,
    "transformers llama": 2 * 7,
    "transformers gpt2": 2 * 4,
}


def loss_of(model: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if type(model).__module__.startswith("transformers."):
        tokens = torch.randint(3, 64, (4, 16), generator=generator)
        return model(input_ids=tokens, labels=tokens).loss
    x, y = torch.randn(4, 3, 32, 32, generator=generator), torch.randint(0, 10, (4,), generator=generator)
    return nn.functional.cross_entropy(model(x), y)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_models_of_others_train_sparsely_and_come_back_dense(name, method):
    build, patterns = MODELS[name]
    torch.manual_seed(0)
    model = build()
    dense = copy.deepcopy(model)
    kind, keys = type(model), model.state_dict().keys()
    density = None if "2:4" in patterns.values() else 0.25
    sparsifier = cw.sparsify(model, patterns, density=density, method=METHODS[method], track=True)
    assert len(sparsifier.layers) == NUM_SPARSE[name]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sparsifier.attach(optimizer)
    losses = []
    for _ in range(6):
        loss = loss_of(model)
        loss.backward()
        for path, layer in sparsifier.layers.items():
            assert layer.weight.grad.any(), f"{path} took no part"
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    # Each step sees other numbers.
    assert min(losses[3:]) < losses[0]
    assert sparsifier.steps_done == 6
    assert any(any(seen.turnovers) for seen in sparsifier.exploration.values())
    with torch.no_grad():
        expected = loss_of(model.eval())
        check_masks_are_felt(model, sparsifier, expected)
        masks = cw.bake(model)
    assert type(model) is kind
    assert model.state_dict().keys() == keys
    assert all(
        not model.get_submodule(path).weight[~mask].any() for path, mask in masks.items() if "self_att" not in path
    )
    dense.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(loss_of(dense.eval()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing_changes_no_mask(method):
    models = []
    for checkpointing in (False, True):
        model = llama()
        sparsifier = cw.sparsify(model, {"model.layers.*": "block:4"}, density=0.25, method=METHODS[method])
        if checkpointing:
            model.gradient_checkpointing_enable()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        sparsifier.attach(optimizer)
        for _ in range(5):
            loss_of(model.train()).backward()
            optimizer.step()
            optimizer.zero_grad()
        models.append(model)
    check_same(*models)


def check_masks_are_felt(model: nn.Module, sparsifier: cw.Sparsifier, expected: torch.Tensor) -> None:
    """Check that weights outside the mask do nothing, and that the mask of every single layer does something."""
    for path, layer in sparsifier.layers.items():
        before = layer.weight.clone()
        layer.weight[~layer.sparsity.mask] = 100.0
        assert torch.equal(loss_of(model), expected), path
        layer.weight.copy_(before)
        mask = layer.sparsity.mask.clone()
        layer.sparsity.mask.zero_()
        assert not torch.equal(loss_of(model), expected), path
        layer.sparsity.mask.copy_(mask)
