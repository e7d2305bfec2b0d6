import torch

from cutwork import load_digits


def test_shapes_types_and_ranges():
    digits = load_digits()
    assert digits.train_images.shape == (1437, 1, 8, 8)
    assert digits.test_images.shape == (360, 1, 8, 8)
    assert digits.train_images.dtype == digits.test_images.dtype == torch.float32
    assert digits.train_labels.dtype == digits.test_labels.dtype == torch.int64
    for images in (digits.train_images, digits.test_images):
        assert images.min() == 0
        assert images.max() == 1


def test_the_split_never_changes():
    first, second = load_digits(), load_digits()
    assert torch.equal(first.train_images, second.train_images)
    # The file starts 0, 1, 2, ... and ends with ... 8, 9, 8, as the source publishes it.
    assert first.train_labels[:10].tolist() == list(range(10))
    assert first.test_labels[-3:].tolist() == [8, 9, 8]
    assert first.train_images.mul(16).sum().item() + first.test_images.mul(16).sum().item() == 561718


def test_each_digit_is_in_both_parts():
    digits = load_digits()
    assert digits.train_labels.bincount().min() >= 130
    assert digits.test_labels.bincount().min() >= 30


def test_a_nearest_neighbour_is_right_as_often_as_the_docstring_says():
    digits = load_digits()
    distances = torch.cdist(digits.test_images.flatten(1), digits.train_images.flatten(1))
    guesses = digits.train_labels[distances.argmin(dim=1)]
    assert round((guesses == digits.test_labels).float().mean().item(), 3) == 0.956


def test_a_caller_may_write_into_its_copy():
    load_digits().train_images.zero_()
    assert load_digits().train_images.max() == 1
