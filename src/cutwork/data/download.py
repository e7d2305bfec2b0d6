"""A file from the network, which goes on where an attempt before it broke off, and is checked before it counts."""

import hashlib
import importlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from shutil import copyfileobj
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

logger = logging.getLogger(__name__)

ATTEMPTS = 5
# Seconds: without a byte, and between two attempts.
TIMEOUT = 60.0
PAUSE = 2.0
CHUNK = 2**20


def download(url: str, file: Path, sha256: str) -> None:
    """Fetch a file, unless it is there; what has come of it lies beside it, named `.part`, until it is whole.

    Of several processes that ask for it at once one fetches it, and the others wait.
    """
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with _alone(file):
        if not file.exists():
            _fetch(url, file, sha256)


def _fetch(url: str, file: Path, sha256: str) -> None:
    part = file.with_name(file.name + ".part")
    logger.info("downloading %s to %s", url, file)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _go_on(url, part)
            break
        except (OSError, HTTPException) as error:
            if attempt == ATTEMPTS or (isinstance(error, HTTPError) and error.code < HTTPStatus.INTERNAL_SERVER_ERROR):
                kept = f"; {part} keeps what has come, and the next download goes on there" if part.exists() else ""
                raise ConnectionError(f"cannot download {url}: {error}{kept}") from error
            logger.info("%s: %s; going on", url, error)
            time.sleep(PAUSE)
    if (found := sha256_of(part)) != sha256:
        part.unlink()
        raise ValueError(f"what {url} gave is damaged: its SHA-256 is {found}, not {sha256}; it was deleted, try again")
    part.replace(file)


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Wait until no other process fetches a file, and let none begin meanwhile."""
    try:
        fcntl: Any = importlib.import_module("fcntl")
    except ModuleNotFoundError:
        # Windows has no such locks.
        yield
        return
    place = file.with_name(f".{file.name}.lock")
    while True:
        with place.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Whoever held it before has deleted it: lock the one that stands there now.
            if not os.fstat(lock.fileno()).st_nlink:
                continue
            try:
                yield
            finally:
                place.unlink()
            return


def _go_on(url: str, part: Path) -> None:
    begin = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={begin}-"} if begin else {})
    try:
        answer = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        # Nothing is left to send: an earlier attempt had got all of it.
        if begin and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return
        raise
    with answer:
        # A server that does not know ranges sends the whole file again.
        goes_on = answer.status == HTTPStatus.PARTIAL_CONTENT
        if goes_on and not answer.headers.get("Content-Range", "").startswith(f"bytes {begin}-"):
            raise ConnectionError(f"asked for bytes from {begin} on, got {answer.headers.get('Content-Range')}")
        with part.open("ab" if goes_on else "wb") as file:
            copyfileobj(answer, file, CHUNK)
            size = file.tell()
    # A connection that ends early is no error to Python's client, if it was read piece by piece.
    promised = answer.headers.get("Content-Length")
    if promised is not None and size != int(promised) + begin * goes_on:
        raise ConnectionError(f"it broke off after {size} bytes")
