"""Images in files: read in other processes, and the same whoever reads them."""

from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from cutwork.data import folder_feed, make_feed
from cutwork.data.feed import Feeding, chance_of, order_of
from cutwork.data.image_folder import ImageFiles

SMALL = {"train_crop": 12, "test_crop": 12, "test_resize": 16}
AUGMENT = ("resized-crop", "flip", "randaugment", "erasing", "mixup:0.2", "cutmix")


def feed_of(folder, **given):
    return make_feed(f"folder:{folder}", Feeding(**{"batch": 4, "test_batch": 4, **SMALL, **given}))


def same(one, other):
    return all(torch.equal(x, x2) and torch.equal(y, y2) for (x, y), (x2, y2) in zip(one, other, strict=True))


@pytest.mark.parametrize("augment", [(), ("crop", "flip"), AUGMENT], ids=["plain", "crop", "all"])
def test_batches_do_not_depend_on_how_many_read_them(augment, image_files):
    alone = [*feed_of(image_files, augment=augment).training(1)]
    assert len(alone) == 3
    assert alone[0][0].shape == (4, 3, 12, 12)
    assert same(alone, feed_of(image_files, augment=augment, workers=2).training(1))
    assert not torch.equal(alone[0][0], next(feed_of(image_files, augment=augment).training(2))[0])


def test_an_epoch_goes_on_from_any_step_without_reading_what_was_before(image_files, monkeypatch):
    whole = [*feed_of(image_files, augment=AUGMENT).training(1)]
    feed, opened = feed_of(image_files, augment=AUGMENT), []
    truly = ImageFiles.open
    monkeypatch.setattr(ImageFiles, "open", lambda files, number: opened.append(number) or truly(files, number))
    torch.manual_seed(1)
    assert same(islice(whole, 2, None), feed.training(1, start=2))
    assert len(opened) == 4


def test_processes_share_an_epoch_and_what_is_done_to_each_image(image_files):
    augment = ("resized-crop", "flip")
    alone = [*feed_of(image_files, augment=augment).training(0)]
    shares = [feed_of(image_files, augment=augment, batch=2, world=2, rank=rank).training(0) for rank in (0, 1)]
    together = [
        tuple(torch.stack(parts, dim=1).flatten(0, 1) for parts in zip(*both, strict=True))
        for both in zip(*shares, strict=True)
    ]
    assert same(alone, together)


def test_repeated_images_are_augmented_anew(image_files):
    images, labels = next(feed_of(image_files, augment=("resized-crop",), repeats=2).training(0))
    assert torch.equal(labels[0::2], labels[1::2])
    assert not any(torch.equal(one, other) for one, other in zip(images[0::2], images[1::2], strict=True))
    plain, _ = next(feed_of(image_files, repeats=2).training(0))
    assert torch.equal(plain[0::2], plain[1::2])


def test_test_images_are_cut_out_as_torchvision_does(image_files):
    feed = feed_of(image_files)
    images, labels = (torch.cat(parts) for parts in zip(*feed.testing(), strict=True))
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    prepare = v2.Compose(
        [
            v2.Resize(16),
            v2.CenterCrop(12),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    files = sorted((image_files / "val").rglob("*.png"))
    expected = torch.stack([prepare(Image.open(file).convert("RGB")) for file in files])
    torch.testing.assert_close(images, expected.as_subclass(torch.Tensor), atol=1e-5, rtol=0)
    assert torch.equal(feed.example, images[:1])
    assert feed.num_classes == 3
    assert "12 training and 6 test images of 3 classes" in feed.description


def test_training_images_are_augmented_as_torchvision_does(image_files):
    augment = (
        "resized-crop:0.3",
        "flip:0.4",
        "rotate:9",
        "crop:2",
        "randaugment:1,20",
        "trivialaugment",
        "erasing:0.8",
    )
    feed = feed_of(image_files, augment=augment, interpolation="bicubic", batch=6, seed=5)
    images, _ = next(feed.training(3))
    bicubic = v2.InterpolationMode.BICUBIC
    theirs = v2.Compose(
        [
            v2.RandomResizedCrop(12, scale=(0.3, 1), interpolation=bicubic),
            v2.RandomHorizontalFlip(0.4),
            v2.RandomRotation(9, interpolation=bicubic),
            v2.RandomCrop(12, padding=2),
            v2.RandAugment(1, 20, interpolation=bicubic),
            v2.TrivialAugmentWide(interpolation=bicubic),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            v2.RandomErasing(0.8),
        ]
    )
    order = next(order_of(3, 12, feed.feeding)).tolist()
    for place, (number, found) in enumerate(zip(order, images, strict=True)):
        torch.manual_seed(int(torch.randint(2**32, (), generator=chance_of(5, 3, place))))
        torch.testing.assert_close(found, theirs(feed.data.train.open(number)), atol=1e-5, rtol=0)


def test_training_images_without_augmentation_are_cut_out_as_test_images(image_files):
    for file in (image_files / "train").rglob("*.png"):
        other = image_files / "val" / file.parent.name / file.name
        file.write_bytes(other.read_bytes()) if other.exists() else file.unlink()
    feed = feed_of(image_files, batch=6)
    images, labels = next(feed.training(0))
    expected, _ = (torch.cat(parts) for parts in zip(*feed.testing(), strict=True))
    assert torch.equal(images[labels == 1].sum((0, 2, 3)), expected[2:4].sum((0, 2, 3)))


def test_pytorchs_own_chance_is_left_alone(image_files):
    feed, before = feed_of(image_files, augment=AUGMENT), torch.get_rng_state()
    list(feed.training(0))
    list(feed.testing())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_reader_that_stops_early_is_no_harm(image_files):
    feed = feed_of(image_files, workers=1)
    batches = feed.training(0)
    first = next(batches)
    batches.close()
    assert same([first], islice(feed.training(0), 1))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(workers, image_files):
    feed = feed_of(image_files, workers=workers)
    (image_files / "train" / "cat" / "2.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"train/cat/2.png is no image that Pillow can read, or is damaged"):
        list(feed.training(0))


def test_grey_and_transparent_images_get_three_colours(image_files):
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(pixels).save(image_files / "val" / "bird" / "0.png")
    Image.new("RGBA", (16, 16)).save(image_files / "val" / "bird" / "1.png")
    images, _ = next(feed_of(image_files).testing())
    assert images.shape == (4, 3, 12, 12)


def test_sizes_are_those_of_the_data_set_unless_said(image_files, monkeypatch):
    monkeypatch.setenv("CUTWORK_DATA", str(image_files.parent))
    image_files.rename(image_files.parent / "tiny-imagenet")
    feed = make_feed("tiny-imagenet", Feeding(batch=2, augment=("resized-crop",)))
    assert next(feed.training(0))[0].shape == (2, 3, 64, 64)
    assert feed.example.shape == (1, 3, 64, 64)
    feed = make_feed("imagenet", Feeding(batch=2, train_crop=176), folder=image_files.parent / "tiny-imagenet")
    assert next(feed.training(0))[0].shape == (2, 3, 176, 176)
    assert feed.example.shape == (1, 3, 224, 224)


def test_what_cannot_be_is_refused(image_files, tmp_path, monkeypatch):
    monkeypatch.setenv("CUTWORK_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"imagenet needs the folder .*, which is not there; get it from https"):
        make_feed("imagenet", Feeding())
    with pytest.raises(ValueError, match="interpolation='cubic': write one of bilinear, bicubic"):
        feed_of(image_files, interpolation="cubic")
    with pytest.raises(ValueError, match="20 pixels cannot be cut out of 16; make test_resize at least as large"):
        feed_of(image_files, test_crop=20)


def test_torchvision_is_asked_for_where_it_is_missing(image_files, monkeypatch):
    def missing():
        raise ModuleNotFoundError("No module named 'torchvision'", name="torchvision")

    monkeypatch.setattr("cutwork.data.vision.import_torchvision", missing)
    with pytest.raises(ModuleNotFoundError, match=r"need torchvision; install it with pip install 'cutwork\[vision\]'"):
        feed_of(image_files)
    assert folder_feed.FolderFeed
