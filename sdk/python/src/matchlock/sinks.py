"""The destinations of a command's output, and the sources of its input.

Text streams get text, decoded as it comes without ever cutting a character; binary streams get the bytes. Not here:
threads and event loops.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import io
import select
from typing import IO, Any, TypeAlias

from .errors import MatchlockError
from .messages import Params

Writer: TypeAlias = IO[str] | IO[bytes]
Reader: TypeAlias = IO[str] | IO[bytes]

INPUT_BYTES = 32 << 10
"""Most input in one message."""

AHEAD_BYTES = 1 << 20
"""How far input may be ahead of a command, if the server reports how much of it was taken."""


def data(params: Params, member: str = "data") -> bytes:
    """A Base64 member."""
    value = params.get(member)
    try:
        if not isinstance(value, str):
            raise ValueError("not a string")
        return base64.b64decode(value, validate=True)
    except (ValueError, binascii.Error) as error:
        raise MatchlockError(f"invalid response: {member}: {error}") from error


def text(content: bytes) -> str:
    """Any bytes as text."""
    return content.decode("utf-8", errors="replace")


def takes_bytes(stream: object) -> bool:
    """Whether a stream is binary. A stream that does not tell is a text stream, as in earlier releases."""
    if isinstance(stream, (io.RawIOBase, io.BufferedIOBase)):
        return True
    if isinstance(stream, io.TextIOBase):
        return False
    mode = getattr(stream, "mode", None)
    return isinstance(mode, str) and "b" in mode


class Decoder:
    """Turns chunks into pieces that a stream takes."""

    def __init__(self, stream: object, binary: bool | None = None) -> None:
        is_binary = takes_bytes(stream) if binary is None else binary
        self._text = None if is_binary else codecs.getincrementaldecoder("utf-8")("replace")

    def decode(self, chunk: bytes, final: bool = False) -> bytes | str:
        """The part of it that can be written now."""
        return chunk if self._text is None else self._text.decode(chunk, final)


class Sink:
    """Writes chunks to a stream; without a stream, nowhere."""

    def __init__(self, stream: Writer | None) -> None:
        self._stream: Any = stream
        # Only a raw stream may take less than it is given.
        self._raw = isinstance(stream, io.RawIOBase)
        self._decoder = Decoder(stream)

    def write(self, chunk: bytes) -> None:
        """Writes a chunk and flushes, so that it is seen at once."""
        self._put(self._decoder.decode(chunk))

    def finish(self) -> None:
        """Writes the beginning of a character that never became whole."""
        self._put(self._decoder.decode(b"", final=True))

    def _put(self, content: bytes | str) -> None:
        if self._stream is None or not content:
            return
        stream = self._stream
        if self._raw:
            rest = memoryview(to_bytes(content))
            while rest:
                rest = rest[stream.write(rest) or 0 :]
        else:
            stream.write(content)
        flush = getattr(stream, "flush", None)
        if callable(flush):
            flush()


def read_some(stream: Any) -> Any:
    """A piece of input as soon as there is one, of the type that the stream gives; empty at the end."""
    if isinstance(stream, io.BufferedIOBase):
        return stream.read1(INPUT_BYTES)
    if isinstance(stream, io.TextIOBase) and not isinstance(stream, io.StringIO):
        # read() of a text stream waits for the whole length; people type lines.
        return stream.readline(INPUT_BYTES)
    return stream.read(INPUT_BYTES)


def to_bytes(piece: object) -> bytes:
    """Input as bytes."""
    if isinstance(piece, str):
        return piece.encode("utf-8")
    if isinstance(piece, (bytes, bytearray)):
        return bytes(piece)
    raise MatchlockError(f"invalid input type {type(piece).__name__}: expected bytes or str")


def wait_for_more(stream: Any) -> bytes | None:
    """Waits until a stream without data has some; returns the end if it never will."""
    try:
        select.select([stream.fileno()], [], [])
    except (AttributeError, OSError, ValueError):
        return b""
    return None
