"""Random images for timing."""

import pytest
import torch

from cutwork.data import make_feed
from cutwork.data.feed import Feeding


def test_one_batch_is_made_once_and_given_again():
    feed = make_feed("fake:3x12x10", Feeding(batch=4))
    batches = [*feed.training(0)]
    assert len(batches) == feed.steps_of_epoch
    assert all(images is batches[0][0] for images, _ in batches)
    assert batches[0][0].shape == (4, 3, 12, 10)
    assert feed.num_classes == 1000 and batches[0][1].shape == (4,)
    assert [labels.tolist() for _, labels in feed.testing()] == [batches[0][1].tolist()]


def test_images_may_be_augmented_and_have_fewer_classes():
    feed = make_feed("fake:3x32x32:10", Feeding(batch=4, augment=("crop", "cutmix")))
    first, later = (next(feed.training(0, start=start)) for start in (0, 7))
    assert first[1].shape == (4, 10)
    assert not torch.equal(first[0], later[0])
    assert torch.equal(later[0], [*feed.training(0)][7][0])


@pytest.mark.parametrize("name", ["fake:3x32", "fake:0x3x3", "fake:3x32x32:", "fake:axbxc"])
def test_what_is_no_shape_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}: write channels x height x width"):
        make_feed(name, Feeding())
