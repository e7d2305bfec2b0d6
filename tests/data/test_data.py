import subprocess
import sys

import pytest
import torch

from cutwork.data import DATA_SETS, fashion_mnist, load_data
from cutwork.data.images import Images


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_data_set_has_images_with_labels_for_training_and_testing(name, fashion_files, cifar_files, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "FOLDER", fashion_files)
    data = load_data(name)
    assert isinstance(data, Images)
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels)):
        assert images.ndim == 4
        assert images.dtype == torch.float32
        assert labels.shape == images.shape[:1]


def test_an_unknown_data_set_is_refused_with_the_name_that_was_meant():
    with pytest.raises(ValueError, match=r"unknown data set 'digit' \(did you mean 'digits'\?\); write 'digits'"):
        load_data("digit")


def test_the_table_of_data_sets_imports_none_of_them():
    code = "import sys, cutwork.data; sys.exit('torch' in sys.modules or 'cutwork.data.digits' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_option_that_means_nothing_to_a_data_set_is_refused():
    with pytest.raises(ValueError, match="download=True: the data set 'digits' has no use for it"):
        load_data("digits", download=True)
    with pytest.raises(ValueError, match="folder='here': the data set 'digits' has no use for it"):
        load_data("digits", folder="here")


def test_torchvision_and_pillow_are_imported_when_they_are_used():
    code = """if True:
        import sys, cutwork.data.folder_feed
        from cutwork.data import make_feed
        from cutwork.data.feed import Feeding
        next(make_feed("digits", Feeding(augment=("crop", "flip", "rotate", "erasing", "cutmix"))).training(0))
        sys.exit("torchvision" in sys.modules or "PIL" in sys.modules)
    """
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
