import errno
import hashlib
import json
import os
import random
import resource
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cutwork.files import tensor_file
from cutwork.files.tensor_file import DTYPES, read_description, read_file, write_file

TENSORS = {
    "weight": torch.arange(6.0).view(2, 3),
    'größe/"quoted"': torch.tensor(7, dtype=torch.int64),
    "empty": torch.zeros(0, 4),
    "byte": torch.tensor([1, 2, 3], dtype=torch.uint8),
}
DESCRIPTION = {"version": 1, "text": 'é "quoted"', "rate": 0.1}


def write(path):
    write_file(path, TENSORS, DESCRIPTION)
    return path.read_bytes()


def test_what_was_written_is_read(tmp_path):
    write(tmp_path / "a")
    tensors, description = read_file(tmp_path / "a")
    assert description == DESCRIPTION == read_description(tmp_path / "a")
    assert set(tensors) == set(TENSORS)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    assert all(tensors[name].dtype == tensor.dtype for name, tensor in TENSORS.items())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_keeps_its_bytes(tmp_path, dtype):
    tensor = torch.arange(3 * dtype.itemsize, dtype=torch.uint8).view(dtype)
    write_file(tmp_path / "a", {"odd": torch.zeros(3, dtype=torch.uint8), "tensor": tensor}, {})
    read = read_file(tmp_path / "a")[0]["tensor"]
    assert read.dtype == dtype
    assert torch.equal(read.view(torch.uint8), tensor.view(torch.uint8))


def test_the_library_of_the_format_reads_it(tmp_path):
    write(tmp_path / "a")
    tensors = safetensors.torch.load_file(tmp_path / "a")
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_tensors_begin_at_multiples_of_their_size(tmp_path):
    for length in range(16):
        write_file(tmp_path / "a", TENSORS, {"filling": "x" * length})
        content = (tmp_path / "a").read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        assert size % 8 == 0
        for name, tensor in TENSORS.items():
            assert header[name]["data_offsets"][0] % tensor.itemsize == 0


def test_every_flipped_byte_is_found(tmp_path):
    whole = write(tmp_path / "a")
    damaged = tmp_path / "damaged"
    dice = random.Random(0)
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= dice.choice([1, 2, 4, 8, 16, 32, 64, 128, 255, dice.randrange(1, 256)])
        damaged.write_bytes(content)
        with pytest.raises(ValueError, match=r"is damaged|is no complete|without a description"):
            read_file(damaged)


def test_every_truncated_length_is_found(tmp_path):
    whole = write(tmp_path / "a")
    damaged = tmp_path / "damaged"
    for length in range(len(whole)):
        damaged.write_bytes(whole[:length])
        for read in (read_file, read_description):
            with pytest.raises(ValueError, match="is no complete safetensors file"):
                read(damaged)
    damaged.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="is no complete safetensors file"):
        read_file(damaged)


def test_an_altered_description_is_found_without_the_tensors(tmp_path):
    whole = write(tmp_path / "a")
    assert whole.count(b"0.1") == 1
    (tmp_path / "a").write_bytes(whole.replace(b"0.1", b"0.2"))
    with pytest.raises(ValueError, match="its description do not have the sha256"):
        read_description(tmp_path / "a")


def test_an_altered_tensor_is_found(tmp_path):
    whole = write(tmp_path / "a")
    (tmp_path / "a").write_bytes(whole[:-1] + b"\xff")
    with pytest.raises(ValueError, match="its tensors do not have the sha256"):
        read_file(tmp_path / "a")


def test_a_file_of_another_origin_is_refused(tmp_path):
    safetensors.torch.save_file({"weight": torch.ones(2)}, tmp_path / "plain")
    safetensors.torch.save_file({"weight": torch.ones(2)}, tmp_path / "other", metadata={"format": "pt"})
    for name in ("plain", "other"):
        with pytest.raises(ValueError, match="without a description of sparse layers; load it into a dense model"):
            read_file(tmp_path / name)
    torch.save({"weight": torch.ones(2)}, tmp_path / "pickle")
    with pytest.raises(ValueError, match="is no complete safetensors file"):
        read_file(tmp_path / "pickle")
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "missing")


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, moment):
    before = write(tmp_path / "a")

    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(
        *((tensor_file.os, "fsync", fail) if moment == "fsync" else (tensor_file.Path, "replace", fail))
    )
    with pytest.raises(OSError, match="no space"):
        write_file(tmp_path / "a", {"weight": torch.zeros(2)}, {})
    assert (tmp_path / "a").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_two_processes_saving_at_once_are_told(tmp_path, monkeypatch):
    before = write(tmp_path / "a")

    def another_process_removes_it(descriptor):
        tensor_file._remove_leftovers(tmp_path / "a")

    monkeypatch.setattr(tensor_file.os, "fsync", another_process_removes_it)
    with pytest.raises(RuntimeError, match="saved by two processes at once"):
        write_file(tmp_path / "a", {}, {})
    assert (tmp_path / "a").read_bytes() == before


def test_leftovers_go_and_other_files_stay(tmp_path):
    for name in (".a.0123abcd.saving", ".a.4567abcd.saving", ".b.0123abcd.saving", "a.saving", ".a.txt"):
        (tmp_path / name).write_text("unfinished")
    write(tmp_path / "a")
    assert {path.name for path in tmp_path.iterdir()} == {"a", ".b.0123abcd.saving", "a.saving", ".a.txt"}


def test_a_link_stays_a_link_to_the_new_file(tmp_path):
    (tmp_path / "latest").symlink_to(tmp_path / "run.safetensors")
    write_file(tmp_path / "latest", {"a": torch.zeros(2)}, {})
    assert (tmp_path / "latest").is_symlink()
    assert (tmp_path / "run.safetensors").is_file()


@pytest.mark.parametrize("place", ["", "/dev/full"])
def test_what_is_no_file_is_not_replaced(tmp_path, place):
    with pytest.raises(ValueError, match="is a folder or a device; give the name of a file"):
        write_file(Path(place or tmp_path), {"a": torch.zeros(2)}, {})


def write_text(path, description, entries=None, content=b""):
    """Write a file with true digests, of a description in any text and entries of any kind."""
    metadata = {"cutwork": description, "sha256": hashlib.sha256(description.encode()).hexdigest()}
    header = json.dumps({"__metadata__": metadata, **(entries or {})}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content)


@pytest.mark.parametrize("limit", [0, 8192])
def test_a_disk_without_room_names_the_file_and_keeps_the_old_one(tmp_path, limit):
    before = write(tmp_path / "a")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        with pytest.raises(
            OSError, match=r"so the checkpoint was not saved; a file that stood there .*; make room"
        ) as error:
            write_file(tmp_path / "a", {"weight": torch.zeros(10_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_place_where_nobody_may_write_is_named(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(errno.EACCES, "Permission denied", "another name")

    monkeypatch.setattr(tensor_file.Path, "replace", refuse)
    with pytest.raises(
        PermissionError, match=r"Permission denied, so the checkpoint was not saved; .*give another path"
    ) as error:
        write_file(tmp_path / "a", {}, {})
    assert error.value.filename == str(tmp_path / "a")


@pytest.mark.parametrize("read", [read_file, read_description])
def test_what_is_no_file_is_not_read(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match=f"^{place} is a folder or a device; give the name of a file that save"):
            read(place)
    with pytest.raises(FileNotFoundError, match="missing"):
        read(tmp_path / "missing")
    with pytest.raises(NotADirectoryError, match="inside"):
        (tmp_path / "file").touch()
        read(tmp_path / "file" / "inside")


def test_a_file_that_nobody_may_read_is_named(tmp_path, monkeypatch):
    write(tmp_path / "a")

    def refuse(self, mode):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(tensor_file.Path, "open", refuse)
    with pytest.raises(PermissionError, match=str(tmp_path / "a")):
        read_file(tmp_path / "a")


@pytest.mark.parametrize("read", [read_file, read_description])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expecting value"),
        ("[1]", "it is no object"),
        ("{", "Expecting property name"),
        ('{"a": 1, "a": 2}', "a name stands twice"),
        ("[" * 100_000, "recursion"),
        ('{"a": ' + "9" * 5000 + "}", "Exceeds the limit"),
    ],
)
def test_a_description_that_is_no_json_object_is_refused(tmp_path, read, text, words):
    write_text(tmp_path / "a", text)
    with pytest.raises(ValueError, match=f"a has a description that cannot be read .*{words}.*; copy it anew"):
        read(tmp_path / "a")


def test_a_description_without_the_digest_of_the_tensors_is_refused(tmp_path):
    write_text(tmp_path / "a", "{}")
    with pytest.raises(ValueError, match="its tensors do not have the sha256"):
        read_file(tmp_path / "a")
    assert read_description(tmp_path / "a") == {}


@pytest.mark.parametrize(
    ("dtype", "shape", "size"), [("BOOL", [1], 1), ("C64", [1], 8), ("F32", [0, 2**63 - 1, 4], 0), ("F8_E8M0", [1], 1)]
)
def test_a_tensor_that_cannot_have_been_written_is_refused(tmp_path, dtype, shape, size):
    write_text(tmp_path / "a", "{}", {"t": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}, b"\7" * size)
    with pytest.raises(ValueError, match=f"a holds a tensor 't' of {dtype} .*, which no save.. has written; copy it"):
        read_file(tmp_path / "a")
