import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cutwork.speed.cache import TimingCache, cache_file

ENTRY = '{"good": {"dense": 0.5, "tiles": 0.25}}'


@pytest.fixture
def file(tmp_path):
    return tmp_path / "cutwork" / "timings.jsonl"


def test_what_was_put_is_there_in_the_next_run(file):
    first = TimingCache(file)
    first.put("a", {"dense": 1.0})
    first.put("a", {"tiles": 2.0})
    first.put("b", {"dense": 3.0})
    again = TimingCache(file)
    assert (again.get("a"), again.get("b"), again.get("c")) == ({"dense": 1.0, "tiles": 2.0}, {"dense": 3.0}, {})


NONSENSE = [
    f'{{"bad": {{"dense": {number}, "tiles": 1.0}}}}'
    for number in (
        "0",
        "0.0",
        "-1",
        "false",
        "true",
        "NaN",
        "Infinity",
        "-Infinity",
        "1e400",
        "1e9",
        '"1"',
        "null",
        "[]",
    )
] + [
    '{"bad": 1}',
    '{"bad": null}',
    "[1]",
    "1",
    "null",
    '"bad"',
    "{",
    "\x00",
    "{" * 9,
    "[" * 200_000,
    '{"bad": {"dense": 0.',
    "1" * 5000,
]


@pytest.mark.parametrize("line", NONSENSE, ids=lambda line: line[:24])
def test_nonsense_is_never_believed_and_what_stands_beside_it_is(line, file, caplog):
    file.parent.mkdir()
    file.write_text(f"{ENTRY}\n{line}")
    with caplog.at_level(logging.WARNING):
        cache = TimingCache(file)
    assert "1 lines that hold no timings" in caplog.text
    assert (cache.get("good"), cache.get("bad")) == ({"dense": 0.5, "tiles": 0.25}, {})
    cache.put("next", {"dense": 1.0})
    again = TimingCache(file)
    assert (again.get("good"), again.get("next"), again.get("bad")) == (cache.get("good"), {"dense": 1.0}, {})


def test_bytes_that_are_no_text_are_no_timings(file):
    file.parent.mkdir()
    file.write_bytes(b"\xff\xfe\x00\n" + ENTRY.encode())
    assert TimingCache(file).get("good")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
@pytest.mark.timeout(10)
def test_what_stands_in_the_place_of_the_file_is_left_alone_and_nobody_waits_for_it(make, file, caplog):
    file.parent.mkdir()
    make(file)
    with caplog.at_level(logging.WARNING):
        cache = TimingCache(file)
        cache.put("a", {"dense": 1.0})
        cache.put("b", {"dense": 1.0})
    assert cache.get("a") == {"dense": 1.0}
    assert [record.getMessage().count("no plain file") for record in caplog.records] == [1, 1]
    assert not file.is_file()


def test_where_nothing_can_be_written_timings_last_as_long_as_the_run(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = TimingCache(tmp_path / "file" / "timings.jsonl")
    with caplog.at_level(logging.WARNING):
        cache.put("a", {"dense": 1.0})
        cache.put("b", {"dense": 1.0})
    assert caplog.text.count("cannot be kept") == 1
    assert cache.get("b") == {"dense": 1.0}


def test_without_a_home_folder_nothing_is_kept(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2_000_000_000)
    assert cache_file() is None
    cache = TimingCache(cache_file())
    cache.put("a", {"dense": 1.0})
    assert cache.get("a") == {"dense": 1.0}
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_file() == Path("/home/somebody/.cache/cutwork/timings.jsonl")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_file() == Path("/elsewhere/cutwork/timings.jsonl")


def test_threads_and_processes_that_write_at_once_lose_nothing(file):
    def write(thread):
        for place in range(20):
            TimingCache(file).put(f"thread {thread} {place}", {"dense": 1.0})

    program = (
        "import sys; from pathlib import Path; from cutwork.speed.cache import TimingCache\n"
        "cache = TimingCache(Path(sys.argv[1]))\n"
        "for place in range(20): cache.put(f'process {sys.argv[2]} {place}', {'dense': 1.0})"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program, file, str(number)]) for number in range(3)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    assert [process.wait() for process in processes] == [0, 0, 0]
    cache = TimingCache(file)
    assert all(cache.get(f"thread {thread} {place}") for thread in range(8) for place in range(20))
    assert all(cache.get(f"process {number} {place}") for number in range(3) for place in range(20))
    assert list(file.parent.iterdir()) == [file]
