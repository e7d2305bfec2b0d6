"""Models by name fit the data, and what is written wrong is named."""

import pytest
import torch

from cutwork.models.zoo import make_model

SMALL = torch.zeros(2, 1, 32, 32)


@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        "mlp:hidden=(32,16)",
        "resnet8",
        "resnet18:width=8,preactivation=True",
        "wrn-10-1",
        "vgg-like",
        "alexnet-s",
        "vit:width=32,num_blocks=1,num_heads=2",
        "timm:vit_tiny_patch16_224:depth=1",
        "timm:resnet10t",
    ],
)
def test_a_model_takes_the_images_and_tells_the_classes(name):
    assert make_model(name, num_classes=7, example=SMALL).eval()(SMALL).shape == (2, 7)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:vit_b_16"])
def test_models_of_torchvision_take_images_of_this_size(name):
    images = torch.zeros(1, 3, 32, 32)
    assert make_model(name, num_classes=7, example=images).eval()(images).shape == (1, 7)


def test_a_language_model_reads_as_far_as_the_data_goes():
    tokens = torch.zeros(1, 12, dtype=torch.long)
    assert make_model("gpt:width=16,num_blocks=1", num_classes=256, example=tokens)(tokens).shape == (1, 12, 256)


def test_a_model_of_transformers_is_made_from_its_configuration(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.ViTConfig(image_size=64, patch_size=8, num_channels=1, **sizes).save_pretrained(tmp_path)
    # What stands behind the name changes the configuration.
    model = make_model(f"transformers:{tmp_path}:image_size=32", num_classes=7, example=SMALL)
    assert model.eval()(SMALL).logits.shape == (2, 7)
    assert model.config.hidden_size == 16


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "unknown model 'resnet' .did you mean"),
        ("resnet18:width", "'width' is no option; write name:OPTION=VALUE"),
        ("resnet18:wdth=8", "unexpected keyword argument 'wdth'"),
        ("torchvision:resnet19", "torchvision has no model 'resnet19' .did you mean"),
        ("timm:vit_tiny", "timm has no model 'vit_tiny' .did you mean"),
        ("torchvision:resnet18:wdth=8", "torchvision:resnet18:wdth=8: .*wdth"),
        ("timm:resnet18:wdth=8", "timm:resnet18:wdth=8: .*wdth"),
        ("vit:width=100,num_heads=3", "a width of 100 cannot be shared by 3 heads"),
        ("vit:patch=5", "images of 32 pixels cannot be cut into patches of 5"),
    ],
)
def test_what_is_wrong_with_a_name_is_said(name, message):
    with pytest.raises(ValueError, match=message):
        make_model(name, num_classes=10, example=SMALL)
