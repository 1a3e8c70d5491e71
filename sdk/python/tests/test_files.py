"""Files, the log and watches."""

from __future__ import annotations

import array
import hashlib
import io
from datetime import datetime, timezone
from typing import Any

import pytest
from helpers import eventually, params, requests

from matchlock import Client, FileChange, FileInfo, RPCError


def test_a_file_there_and_back(client: Client) -> None:
    client.write_file("/a", "héllo", mode=0o755)
    assert params(client, "write_file") == {"path": "/a", "content": "aMOpbGxv", "mode": 493}
    assert client.read_file("/a") == "héllo".encode()
    client.write_file("/a", b"\x00\xff")
    assert client.read_file("/a", timeout=5) == b"\x00\xff"
    with pytest.raises(RPCError) as caught:
        client.read_file("/missing")
    assert caught.value.is_file_error()


def test_content_is_text_or_bytes(client: Client) -> None:
    content: Any
    for content in (bytearray(b"ab"), memoryview(b"ab"), "ab", array.array("B", b"ab"), memoryview(b"aXbX")[::2]):
        client.write_file("/a", content)
        assert client.read_file("/a") == b"ab"
    for content in (5, None, [1, 2], ["a"], 1.5, io.BytesIO(b"x")):
        with pytest.raises(TypeError, match="content must be str or bytes-like"):
            client.write_file("/b", content)
    assert [request["params"]["path"] for request in requests(client, "write_file")] == ["/a"] * 5


def test_a_large_file_is_written_in_pieces(client: Client) -> None:
    content = bytes(range(256)) * (5 << 12)
    client.write_file("/big", b"old" * 10_000_000)
    client.write_file("/big", content)
    assert [request["params"].get("offset") for request in requests(client, "write_file")[-5:]] == [
        None,
        1 << 20,
        2 << 20,
        3 << 20,
        4 << 20,
    ]
    assert client.read_file("/big") == content


class Pattern(io.RawIOBase):
    """A stream of so many bytes, which holds none of them."""

    def __init__(self, size: int) -> None:
        self.left = size
        self.hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        assert 0 < size <= 4 << 20
        piece = (b"%d" % self.left * size)[: min(size, self.left)]
        self.left -= len(piece)
        self.hash.update(piece)
        return piece


def test_streams_of_any_length(client: Client) -> None:
    source: Any = Pattern((20 << 20) + 17)
    assert client.upload("/stream", source, mode=0o600) == (20 << 20) + 17
    assert params(client, "write_file")["mode"] == 0o600
    target = io.BytesIO()
    assert client.download("/stream", target) == (20 << 20) + 17
    assert hashlib.sha256(target.getvalue()).digest() == source.hash.digest()
    part = io.BytesIO()
    assert client.download("/stream", part, offset=(1 << 20) - 1, length=(2 << 20) + 2) == (2 << 20) + 2
    assert part.getvalue() == target.getvalue()[(1 << 20) - 1 : (3 << 20) + 1]
    assert client.download("/stream", part, offset=1 << 30) == 0
    assert client.download("/stream", part, length=0) == 0


def test_an_empty_stream_makes_an_empty_file(client: Client) -> None:
    client.write_file("/e", "old")
    assert client.upload("/e", io.BytesIO()) == 0
    assert client.read_file("/e") == b""
    assert client.download("/e", io.BytesIO()) == 0


def test_whole_multiples_of_a_piece(client: Client) -> None:
    assert client.upload("/m", io.BytesIO(b"x" * (2 << 20))) == 2 << 20
    target = io.BytesIO()
    assert client.download("/m", target) == 2 << 20
    assert len(client.read_file("/m")) == 2 << 20


def test_listing_and_stat(client: Client) -> None:
    client.write_file("/a", "abc")
    file, directory = client.list_files("/")
    assert file == FileInfo(name="a", size=3, mode=0o644, is_dir=False)
    assert (file.uid, file.gid, file.target, file.permissions) == (1, 2, "t", 0o644)
    assert file.modified == datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=timezone.utc)
    assert directory.is_dir and not directory.is_symlink
    assert client.stat("/a", follow=False) == file
    assert params(client, "stat") == {"path": "/a", "follow": False}


def test_what_else_is_done_to_files(client: Client) -> None:
    client.mkdir("/d", mode=0o700, parents=True)
    assert params(client, "mkdir") == {"path": "/d", "mode": 0o700, "parents": True}
    client.rename("/d", "/e")
    assert params(client, "rename") == {"from": "/d", "to": "/e"}
    client.remove_file("/e", recursive=True)
    assert params(client, "remove") == {"path": "/e", "recursive": True}


def test_a_watch_tells_changes_until_it_is_closed(client: Client) -> None:
    with client.watch("/w", recursive=True, timeout=5) as watch:
        assert params(client, "watch") == {"path": "/w", "recursive": True}
        assert next(watch) == FileChange("created", "/w/a")
        assert [watch.next(5).kind for _ in range(3)] == ["modified", "removed", "overflow"]
        with pytest.raises(TimeoutError):
            watch.next(0.01)
    assert list(watch) == []
    eventually(lambda: len(requests(client, "cancel")) == 1)


def test_the_log(client: Client) -> None:
    assert client.log() == "log\ufffd"
    assert "params" not in requests(client, "log")[0]
    out = io.StringIO()
    with pytest.raises(TimeoutError):
        client.log_stream(out, timeout=0.2)
    assert out.getvalue() == "log é"
    assert len(requests(client, "cancel")) == 1
