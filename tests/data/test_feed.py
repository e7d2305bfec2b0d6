"""Batches follow from seed, epoch and step, and processes share them out."""

from itertools import islice
from typing import Any

import pytest
import torch

from cutwork.data import load_data, make_feed
from cutwork.data.feed import Feeding, chance_of, judging_order, order_of


@pytest.mark.parametrize("start", [0, 1, 7, 21])
def test_an_epoch_goes_on_from_any_step_as_if_nothing_had_happened(start: int) -> None:
    feed = make_feed("digits", Feeding(batch=64, seed=3))
    whole = list(feed.training(epoch=2))
    again = list(make_feed("digits", Feeding(batch=64, seed=3)).training(epoch=2, start=start))
    assert len(again) == len(whole) - start == feed.steps_of_epoch - start
    for (x, y), (x2, y2) in zip(islice(whole, start, None), again, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        tuple(next(order_of(epoch, 100, Feeding(batch=50, seed=seed))).tolist()) for epoch in (0, 1) for seed in (0, 1)
    }
    assert len(orders) == 4
    assert chance_of(0, 1).initial_seed() != chance_of(1, 0).initial_seed()


def test_chance_differs_in_the_bits_that_pytorch_reads() -> None:
    numbers = [(seed, epoch, step) for seed in range(4) for epoch in range(20) for step in range(50)]
    seeds = {chance_of(*given).initial_seed() for given in numbers}
    assert len(seeds) == len(numbers)
    assert max(seeds) < 2**32
    # Also as numbers, from one step to the next.
    drawn = torch.stack([torch.rand(2, generator=chance_of(0, 0, step)) for step in range(1000)])
    assert torch.corrcoef(drawn.T)[0, 1].abs() < 0.1
    assert torch.corrcoef(torch.stack([drawn[1:, 0], drawn[:-1, 0]]))[0, 1].abs() < 0.1


def test_processes_share_the_batches_of_one() -> None:
    alone = [set(chosen.tolist()) for chosen in order_of(0, 50, Feeding(batch=8))]
    shares = [[set(x.tolist()) for x in order_of(0, 50, Feeding(batch=4, world=2, rank=rank))] for rank in (0, 1)]
    assert [one | other for one, other in zip(*shares, strict=True)] == alone
    assert not any(one & other for one, other in zip(*shares, strict=True))
    tested = [torch.cat(list(judging_order(11, Feeding(test_batch=2, world=3, rank=rank)))) for rank in range(3)]
    assert sorted(torch.cat(tested).tolist()) == list(range(11))


def test_repeats_are_shared_out_as_by_a_repeating_sampler() -> None:
    """A batch of all processes has whole examples, each as often as asked, and the processes take turns."""
    whole = torch.randperm(100, generator=chance_of(7, 2)).tolist()
    for world in (1, 2, 3):
        repeated = [number for number in whole for _ in range(3)]
        for rank in range(world):
            feeding = Feeding(batch=4, seed=7, repeats=3, world=world, rank=rank)
            found = torch.cat([*order_of(2, 100, feeding)]).tolist()
            assert found == repeated[rank::world][: 100 // (4 * world) * 4]


def test_all_test_images_are_given_once_and_scaled_as_those_to_train_with() -> None:
    feed, data = make_feed("digits", Feeding(test_batch=100)), load_data("digits")
    images, labels = (torch.cat(parts) for parts in zip(*feed.testing(), strict=True))
    assert torch.equal(labels, data.test_labels)
    assert torch.equal(images, (data.test_images - data.train_images.mean()) / data.train_images.std())
    assert torch.equal(feed.example, images[:1])
    assert feed.num_classes == 10


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch": 0}, "batch=0"),
        ({"test_batch": -1}, "test_batch=-1"),
        ({"repeats": 0}, "repeats=0"),
        ({"workers": -1}, "workers=-1"),
        ({"train_crop": 0}, "train_crop=0: it must be at least 1"),
        ({"rank": 2, "world": 2}, "rank=2: it must be below the number of processes, 2"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Feeding(**given)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="1437 training examples, fewer than a batch of 800 for 2 processes"):
        make_feed("digits", Feeding(batch=800, world=2))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("digits", {"context": 3}, "context=3: the data set 'digits' can do nothing with it"),
        ("digits", {"train_crop": 8}, "train_crop=8: the data set 'digits'"),
        ("text", {"augment": ("flip",)}, r"augment=\('flip',\): text can do nothing with it"),
        ("fake:1x8x8", {"repeats": 3}, "repeats=3: fake images can do nothing with it"),
    ],
)
def test_what_data_knows_nothing_of_is_refused(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_feed(name, Feeding(**given))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar-10", r"unknown data set 'cifar-10' \(did you mean 'cifar10'\?\); write 'digits'.*'folder:'"),
        ("digits:3", "unknown data set 'digits:3'"),
        ("imagenet:3", "unknown data set 'imagenet:3'"),
        ("fake", "unknown data set 'fake'"),
    ],
)
def test_an_unknown_name_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_feed(name, Feeding())


def test_options_for_files_are_refused_where_there_are_none() -> None:
    with pytest.raises(ValueError, match="folder='here': the data set 'fake:1x8x8' has no use for it"):
        make_feed("fake:1x8x8", Feeding(), folder="here")
    with pytest.raises(ValueError, match="download=True: the data set 'imagenet' has no use for it"):
        make_feed("imagenet", Feeding(), download=True)
    with pytest.raises(ValueError, match="several processes would download the same file"):
        make_feed("cifar10", Feeding(world=2), download=True)
