"""Batches follow from seed, epoch and step, and processes share them out."""

from itertools import islice

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


def test_processes_share_the_batches_of_one() -> None:
    alone = [set(chosen.tolist()) for chosen in order_of(0, 50, Feeding(batch=8))]
    shares = [[set(x.tolist()) for x in order_of(0, 50, Feeding(batch=4, world=2, rank=rank))] for rank in (0, 1)]
    assert [one | other for one, other in zip(*shares, strict=True)] == alone
    assert not any(one & other for one, other in zip(*shares, strict=True))
    tested = [torch.cat(list(judging_order(11, Feeding(test_batch=2, world=3, rank=rank)))) for rank in range(3)]
    assert sorted(torch.cat(tested).tolist()) == list(range(11))


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
        ({"rank": 2, "world": 2}, "rank=2: it must be below the number of processes, 2"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Feeding(**given)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="1437 training examples, fewer than a batch of 800 for 2 processes"):
        make_feed("digits", Feeding(batch=800, world=2))
