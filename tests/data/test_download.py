"""A download goes on where it broke off, and what comes is checked."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from cutwork.data import download as module
from cutwork.data.download import download

CONTENT = bytes(range(256)) * 400
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(HTTPServer):
    """A server that breaks off after some bytes, as often as it is told to."""

    ranges = True
    breaks = 0
    answers = CONTENT
    code = None

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/data.bin"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        if server.code:
            self.send_error(server.code)
            return
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        if begin and begin >= len(server.answers):
            self.send_error(416)
            return
        rest = server.answers[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(server.answers) - 1}/{len(server.answers)}")
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if server.breaks:
            server.breaks -= 1
            rest = rest[:30000]
        self.wfile.write(rest)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.0)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_download_that_breaks_off_goes_on_there(server, tmp_path):
    server.breaks = 2
    file = tmp_path / "new" / "data.bin"
    download(server.url, file, SHA256)
    assert file.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=30000-", "bytes=60000-"]
    assert [path.name for path in file.parent.iterdir()] == ["data.bin"]


def test_one_that_breaks_off_too_often_goes_on_when_it_is_called_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    server.breaks = 2
    file = tmp_path / "data.bin"
    with pytest.raises(ConnectionError, match=r"broke off after 60000 bytes; .*data.bin.part keeps what has come"):
        download(server.url, file, SHA256)
    assert not file.exists()
    download(server.url, file, SHA256)
    assert file.read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=60000-"


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
    server.ranges, server.breaks = False, 1
    download(server.url, tmp_path / "data.bin", SHA256)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_a_part_that_is_whole_is_only_checked(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    download(server.url, tmp_path / "data.bin", SHA256)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


def test_what_is_there_is_not_asked_for(server, tmp_path):
    (tmp_path / "data.bin").write_bytes(b"mine")
    download(server.url, tmp_path / "data.bin", SHA256)
    assert not server.asked


def test_other_bytes_than_promised_are_deleted(server, tmp_path):
    server.answers = CONTENT[:-1] + b"?"
    with pytest.raises(ValueError, match=f"is damaged: its SHA-256 is .*, not {SHA256}; it was deleted"):
        download(server.url, tmp_path / "data.bin", SHA256)
    assert not [*tmp_path.iterdir()]


def test_a_file_that_is_not_there_is_asked_for_once(server, tmp_path):
    server.code = 404
    with pytest.raises(ConnectionError, match=r"cannot download .*data.bin: HTTP Error 404"):
        download(server.url, tmp_path / "data.bin", SHA256)
    assert len(server.asked) == 1


def test_of_several_that_ask_at_once_one_fetches(server, tmp_path):
    file = tmp_path / "data.bin"
    asking = [threading.Thread(target=download, args=(server.url, file, SHA256)) for _ in range(4)]
    for each in asking:
        each.start()
    for each in asking:
        each.join()
    assert file.read_bytes() == CONTENT
    assert server.asked == [None]
