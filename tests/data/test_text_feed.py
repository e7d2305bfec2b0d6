"""Windows of text, and the byte that follows each place."""

from itertools import islice

import pytest
import torch

from cutwork.data import make_feed
from cutwork.data.feed import Feeding
from cutwork.data.text_feed import standard_library

TEXT = bytes(index % 251 for index in range(3000))


@pytest.fixture
def file(tmp_path):
    (tmp_path / "book.txt").write_bytes(TEXT)
    return tmp_path / "book.txt"


def test_labels_are_the_inputs_one_byte_later(file):
    feed = make_feed(f"text:{file}", Feeding(batch=4, context=16))
    for inputs, labels in [next(feed.training(0)), next(feed.testing())]:
        assert inputs.shape == labels.shape and inputs.shape[1] == 16
        assert inputs.dtype == labels.dtype == torch.int64
        assert torch.equal((inputs + 1) % 251, labels)
    assert feed.num_classes == 256
    assert torch.equal(feed.example, torch.tensor([list(TEXT[2700:2716])]))


def test_the_last_tenth_is_tested_once_and_never_trained_with(file):
    feed = make_feed(f"text:{file}", Feeding(batch=4, context=16))
    tested = torch.cat([labels.flatten() for _, labels in feed.testing()])
    assert bytes(tested.tolist()) == TEXT[2701 : 2701 + 16 * 18]
    shares = [make_feed(f"text:{file}", Feeding(batch=4, context=16, world=2, rank=rank)) for rank in (0, 1)]
    assert sum(len(inputs) for share in shares for inputs, _ in share.testing()) == 18
    assert len(feed.train) == 2700
    # All of the rest can come.
    ends = {int(labels[row, -1]) for epoch in range(20) for _, labels in feed.training(epoch) for row in range(4)}
    assert len(ends) > 240


def test_an_epoch_goes_on_from_any_step(file):
    feeding = Feeding(batch=4, context=16, seed=2)
    whole = [*make_feed(f"text:{file}", feeding).training(3)]
    again = [*make_feed(f"text:{file}", feeding).training(3, start=30)]
    assert len(whole) == 2699 // 16 // 4
    for (x, y), (x2, y2) in zip(islice(whole, 30, None), again, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)
    for other in (Feeding(batch=4, context=16, seed=3), Feeding(batch=4, context=16, seed=2, world=2, rank=1)):
        assert not torch.equal(next(make_feed(f"text:{file}", other).training(3))[0], whole[0][0])


def test_what_cannot_be_is_refused(file):
    with pytest.raises(FileNotFoundError, match="there is no file nowhere"):
        make_feed("text:nowhere", Feeding())
    with pytest.raises(ValueError, match=r"book.txt has 3000 bytes; .* more than the 300 bytes of context"):
        make_feed(f"text:{file}", Feeding(context=300))
    with pytest.raises(ValueError, match="84 training examples, fewer than a batch of 85"):
        make_feed(f"text:{file}", Feeding(context=32, batch=85))


def test_the_text_of_every_machine_is_source_of_python():
    text = standard_library()
    assert len(text) > 5_000_000
    assert b"def randrange(" in text
    assert text == standard_library()
    feed = make_feed("text", Feeding(batch=2))
    inputs, _ = next(feed.training(0))
    assert inputs.shape == (2, 128)
    assert feed.description.startswith(f"the sources of Python's standard library: {len(text)} bytes, SHA-256 ")


def test_the_text_holds_nothing_installed_and_no_tests(tmp_path, monkeypatch):
    for name in ("b.py", "a/b.py", "a-b.py", "test/c.py", "a/tests/c.py", "site-packages/c.py", "_sysconfigdata_x.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert standard_library() == b"a-b.py\na/b.py\nb.py"
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="the sources of Python are not in"):
        standard_library()
