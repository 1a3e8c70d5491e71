"""Output that is written as it comes, and input that is sent as it is read, for the asyncio client.

Ordinary streams work, and so do those whose methods are coroutines, such as `asyncio.StreamWriter` and
`asyncio.StreamReader`. Not here: the kinds of streams (`sinks`).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import IO, Any, Protocol, TypeAlias

from . import sinks, wire
from .messages import Notification, Params


class BytesWriter(Protocol):
    """A binary stream, such as `asyncio.StreamWriter`; `drain` is awaited, if there is one."""

    def write(self, data: bytes, /) -> Any:
        """Takes bytes; an awaitable result is awaited."""


class BytesReader(Protocol):
    """A binary stream, such as `asyncio.StreamReader`."""

    def read(self, n: int, /) -> Awaitable[bytes]:
        """Returns bytes; none at the end."""
        ...


AsyncWriter: TypeAlias = IO[str] | IO[bytes] | BytesWriter
AsyncReader: TypeAlias = IO[str] | IO[bytes] | BytesReader
Sizes: TypeAlias = Iterable[tuple[int, int]] | AsyncIterable[tuple[int, int]]
Post: TypeAlias = Callable[[str, Params], Awaitable[None]]


async def settle(value: Any) -> Any:
    """A result, awaited if it is awaitable."""
    return await value if inspect.isawaitable(value) else value


class AsyncSink:
    """Writes chunks to a stream."""

    def __init__(self, stream: AsyncWriter) -> None:
        self._stream: Any = stream
        drains = callable(getattr(stream, "drain", None))
        self._after: Any = getattr(stream, "drain" if drains else "flush", None)
        self._decoder = sinks.Decoder(stream, True if drains else None)

    async def write(self, chunk: bytes, final: bool = False) -> None:
        """Writes a chunk and flushes, so that it is seen at once."""
        content = self._decoder.decode(chunk, final)
        if content:
            await settle(self._stream.write(content))
            if callable(self._after):
                await settle(self._after())


class AsyncOutput:
    """Streams by the method of their notifications."""

    def __init__(self, streams: Mapping[str, AsyncWriter | None]) -> None:
        self._sinks = {method: AsyncSink(stream) for method, stream in streams.items() if stream is not None}

    async def take(self, notification: Notification) -> None:
        """Writes the data of a notification."""
        sink = self._sinks.get(notification.method)
        if sink is not None:
            await sink.write(sinks.data(notification.params))

    async def finish(self) -> None:
        """Writes the rest at the end."""
        for sink in self._sinks.values():
            await sink.write(b"", final=True)


class Window:
    """The limit on how far input may be ahead of a command."""

    def __init__(self, acks: bool) -> None:
        self._acks = acks
        self._sent = 0
        self._taken = 0
        self._changed = asyncio.Event()

    def taken(self, total: int) -> None:
        """Notes that this many bytes have gone to the command."""
        self._taken = total
        self._changed.set()

    async def sent(self, size: int) -> None:
        """Notes that this many more bytes were sent; waits until more may be."""
        self._sent += size
        while self._acks and self._sent - self._taken >= sinks.AHEAD_BYTES:
            self._changed.clear()
            await self._changed.wait()


async def send_input(
    post: Post, method: str, id: int, stream: AsyncReader | None, window: Window, failures: list[Exception]
) -> None:
    """Sends a command its standard input, to the end."""
    try:
        while stream is not None and (piece := await _read(stream)):
            await post(f"{method}.stdin", wire.input_params(id, piece))
            await window.sent(len(piece))
    except Exception as error:
        failures.append(error)
    await post(f"{method}.stdin_eof", {"id": id})


async def send_sizes(post: Post, method: str, id: int, sizes: Sizes, failures: list[Exception]) -> None:
    """Sends a terminal its changes of size."""
    try:
        async for size in _each(sizes):
            params = wire.resize_params(id, size)
            if params is not None:
                await post(f"{method}.resize", params)
    except Exception as error:
        failures.append(error)


async def _read(stream: Any) -> bytes:
    if inspect.iscoroutinefunction(stream.read):
        return sinks.to_bytes(await stream.read(sinks.INPUT_BYTES))
    while True:
        read = await in_thread(sinks.read_some, stream)
        piece = await in_thread(sinks.wait_for_more, stream) if read is None else sinks.to_bytes(read)
        if piece is not None:
            return piece


async def _each(sizes: Sizes) -> AsyncIterator[tuple[int, int]]:
    if isinstance(sizes, AsyncIterable):
        async for size in sizes:
            yield size
        return
    source = iter(sizes)
    end = object()
    while (size := await in_thread(next, source, end)) is not end:
        yield size


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """The result of a blocking function. Unlike those of an executor, a thread that never comes back does not keep the
    program from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle_future(result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def run() -> None:
        result, failure = None, None
        try:
            result = function(*args)
        except BaseException as error:
            failure = error
        # A loop that has been closed meanwhile has no waiter.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle_future, result, failure)

    threading.Thread(target=run, name="matchlock-blocking", daemon=True).start()
    return await future
