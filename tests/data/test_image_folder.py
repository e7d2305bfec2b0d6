"""Which files of a folder are which images."""

import shutil

import pytest
from PIL import Image

from cutwork.data.image_folder import list_images


def names(files, root):
    return [bytes(name).decode().removeprefix(f"{root}/") for name in files.names]


def test_classes_and_files_are_in_the_order_of_their_names(image_files):
    data = list_images(image_files)
    assert data.classes == ("bird", "cat", "dog")
    assert names(data.train, image_files)[:3] == ["train/bird/0.png", "train/bird/1.png", "train/bird/2.png"]
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(data.test) == 6


def test_what_is_no_image_is_passed_over(image_files):
    (image_files / "train" / "cat" / "notes.txt").write_text("miaow")
    (image_files / "train" / "cat" / "._0.png").write_text("a trace of another system")
    (image_files / "train" / "list.csv").write_text("")
    assert len(list_images(image_files).train) == 12


def test_tiny_imagenet_has_its_test_images_in_one_folder(image_files):
    for place in (image_files / "train").iterdir():
        (place / "images").mkdir()
        for file in [*place.glob("*.png")]:
            file.rename(place / "images" / file.name)
        (place / f"{place.name}_boxes.txt").write_text("0.png\t0\t0\t9\t9")
    shutil.rmtree(image_files / "val")
    (image_files / "val" / "images").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (9, 9)).save(image_files / "val" / "images" / f"val_{number}.png")
    lines = [f"val_{number}.png\t{name}\t0\t0\t9\t9" for number, name in enumerate(["dog", "bird", "dog"])]
    (image_files / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    data = list_images(image_files)
    assert data.test.labels.tolist() == [2, 0, 2]
    assert names(data.test, image_files)[0] == "val/images/val_0.png"
    assert len(data.train) == 12
    (image_files / "val" / "val_annotations.txt").write_text("val_9.png\tdog\t0")
    with pytest.raises(ValueError, match=r"val_annotations.txt says 'val_9.png\\tdog\\t0', but that is no image"):
        list_images(image_files)


def test_what_is_missing_is_said(image_files):
    (image_files / "val" / "fish").mkdir()
    with pytest.raises(ValueError, match="val/fish: there is no class of this name in train/"):
        list_images(image_files)
    (image_files / "train" / "fish").mkdir()
    with pytest.raises(ValueError, match=r"train/fish holds no image; known are the endings .bmp"):
        list_images(image_files)
    shutil.rmtree(image_files / "val")
    with pytest.raises(FileNotFoundError, match="has no folder val/; it must hold train/ and val/"):
        list_images(image_files)
    (image_files / "val").mkdir()
    shutil.rmtree(image_files / "train" / "fish")
    with pytest.raises(ValueError, match="val holds no folder"):
        list_images(image_files)
