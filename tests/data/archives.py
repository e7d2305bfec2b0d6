"""Small archives in the format of CIFAR, written as Python 2 wrote them."""

import io
import struct
import tarfile
from dataclasses import replace

import numpy as np

from cutwork.data import cifar
from cutwork.data.cifar import CIFAR10
from cutwork.data.download import sha256_of


def python2_string(content):
    return b"T" + struct.pack("<i", len(content)) + content


def python2_number(number):
    return b"J" + struct.pack("<i", number)


def python2_array(array):
    """Return the opcodes of an array of bytes, as numpy 1 left them under protocol 2."""
    shape = b"(" + b"".join(python2_number(size) for size in array.shape) + b"t"
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + python2_string(array.tobytes()) + b"tb"


def python2_pickle(entries):
    """Return the pickle of a dictionary with names, lists of numbers and arrays."""
    items = b""
    for name, value in entries.items():
        items += python2_string(name)
        if isinstance(value, np.ndarray):
            items += python2_array(value)
        elif isinstance(value, bytes):
            items += python2_string(value)
        else:
            items += b"](" + b"".join(map(python2_number, value)) + b"e"
    return b"\x80\x02}(" + items + b"u."


def write_archive(file, members):
    with tarfile.open(file, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def cifar_part(number, labels_name, num_classes):
    """Return the pickle of three images: number i of part n is 10 * n + i everywhere, but for its last pixel."""
    data = np.repeat(10 * number + np.arange(3, dtype=np.uint8), 3072).reshape(3, 3072)
    data[:, -1] = 255
    labels = [(number + image) % num_classes for image in range(3)]
    return python2_pickle({b"batch_label": b"a batch", labels_name: labels, b"data": data})


def put(archive, members, folder, monkeypatch):
    """Write an archive and have its checksum expected."""
    file = folder / archive.file_name
    write_archive(file, members)
    name = "CIFAR10" if archive is CIFAR10 else "CIFAR100"
    monkeypatch.setattr(cifar, name, replace(archive, sha256=sha256_of(file)))
    return file
