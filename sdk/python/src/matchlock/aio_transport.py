"""The server process on an event loop: one task that reads its messages, coroutines that wait for their requests.

The promises are those of `transport`: no line and no callback ends the reader, and the queue of a consumer has a bound.
Not here: the messages' meaning.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any

from . import forks
from .aio_streams import in_thread
from .deadlines import Deadline
from .errors import MatchlockError
from .messages import Lines, Notification, Params, Response, decode, encode
from .server import Server
from .transport import LOST, NOT_RUNNING, QUEUE_BYTES, READ_BYTES

OnNotification = Callable[[Notification], Awaitable[None]]


class Call:
    """One request under way: a queue of notifications with an end."""

    def __init__(self, id: int, method: str, lossy: bool = False) -> None:
        self.id = id
        self.method = method
        self._lossy = lossy
        self._lost = False
        self._origin = forks.Origin()
        self._queue: deque[Notification] = deque()
        self._queued = 0
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._abandoned = False
        self._done = False
        self._result: Any = None
        self._error: Exception | None = None

    # The reader's side.

    async def notify(self, notification: Notification) -> None:
        """Queues it; while the consumer is too far behind, waits, or drops it if the call is lossy."""
        while self._queue and self._queued > QUEUE_BYTES and not self._abandoned:
            if self._lossy:
                self._lost = True
                return
            self._room.clear()
            await self._room.wait()
        if not (self._abandoned or self._done):
            self._queue.append(notification)
            self._queued += notification.size
            self._news.set()

    def finish(self, result: Any, error: Exception | None) -> None:
        """Ends it; the first end counts."""
        if not self._done:
            self._done = True
            self._result = result
            self._error = error
            self._news.set()

    # The consumer's side.

    def abandon(self) -> bool:
        """Stops listening; returns whether the request was still under way."""
        self._abandoned = True
        self._queue.clear()
        self._news.set()
        self._room.set()
        return not self._done

    async def next(self, deadline: Deadline) -> Notification | None:
        """The next notification; None = there are no more, see `result`. Raises TimeoutError."""
        self._origin.check()
        while not (self._queue or self._lost or self._done or self._abandoned):
            self._news.clear()
            await self._wait_for_news(deadline)
        if not self._queue:
            if not self._lost:
                return None
            self._lost = False
            return Notification(LOST, {}, 0)
        notification = self._queue.popleft()
        self._queued -= notification.size
        self._room.set()
        return notification

    async def _wait_for_news(self, deadline: Deadline) -> None:
        remaining = deadline.remaining()
        if remaining is None:
            await self._news.wait()
            return
        if remaining == 0:
            raise TimeoutError
        timer = asyncio.get_running_loop().call_later(remaining, self._news.set)
        try:
            await self._news.wait()
        finally:
            timer.cancel()

    def result(self) -> Any:
        """The result of a finished request."""
        if self._error is not None:
            raise self._error
        return self._result


class AsyncTransport:
    """One server process, for one event loop of the process that made it."""

    def __init__(
        self,
        server: Server,
        stdin: asyncio.StreamWriter,
        stdout: asyncio.StreamReader,
        stdout_transport: asyncio.BaseTransport,
        on_event: Callable[[Params], None],
        on_end: Callable[[], None],
    ) -> None:
        self._process = server.process
        self._stderr = server.stderr
        self._on_event = on_event
        self._on_end = on_end
        self._stdin = stdin
        self._stdout_transport = stdout_transport
        self._origin = forks.Origin()
        self._last_id = 0
        self._calls: dict[int, Call] = {}
        self._ended = False
        self._draining = asyncio.Lock()
        self._reader = asyncio.create_task(self._read(stdout), name="matchlock-reader")

    @staticmethod
    async def start(
        argv: Sequence[str], on_event: Callable[[Params], None], on_end: Callable[[], None]
    ) -> AsyncTransport:
        """Starts the server."""
        server = Server(argv)
        try:
            stdin = await _writer(server.stdin)
            stdout, stdout_transport = await _reader(server.stdout)
        except BaseException:
            # The loop may have either of them by now; both end the server.
            server.stdin.close()
            server.stdout.close()
            server.stderr.close()
            raise
        return AsyncTransport(server, stdin, stdout, stdout_transport, on_event, on_end)

    def running(self) -> bool:
        """Whether requests can be made."""
        here = self._origin.is_here() and not self._ended
        return here and self._process.returncode is None and not self._stdin.is_closing()

    async def request(
        self,
        method: str,
        params: Params | None = None,
        on_notification: OnNotification | None = None,
        deadline: Deadline | None = None,
    ) -> Any:
        """Makes a request and waits for its end. Leaving the wait early, for any reason, cancels the request."""
        deadline = deadline or Deadline()
        async with self.open(method, params) as call:
            while True:
                try:
                    notification = await call.next(deadline)
                except TimeoutError:
                    text = f"request {method} (id={call.id}) timed out after {deadline.timeout}s"
                    raise TimeoutError(text) from None
                if notification is None:
                    return call.result()
                if on_notification is not None:
                    await on_notification(notification)

    @contextlib.asynccontextmanager
    async def open(self, method: str, params: Params | None = None) -> AsyncGenerator[Call, None]:
        """Makes a request; leaving the context cancels it if it is still under way."""
        call = await self.begin(method, params)
        try:
            yield call
        finally:
            self.end(call)

    async def begin(self, method: str, params: Params | None = None, lossy: bool = False) -> Call:
        """Makes a request that `end` has to end."""
        self._origin.check()
        if not self.running():
            raise MatchlockError(NOT_RUNNING)
        call = Call(self._next_id(), method, lossy)
        self._calls[call.id] = call
        try:
            await self._write(encode(method, call.id, params))
        except BaseException:
            self.end(call)
            raise
        return call

    def end(self, call: Call) -> None:
        """Stops listening to a request, and cancels it if it is still under way."""
        self._calls.pop(call.id, None)
        if call.abandon():
            self.post_soon("cancel", {"id": call.id})

    async def post(self, method: str, params: Params) -> None:
        """Sends a message that nothing waits for. A server that is gone is no error."""
        with contextlib.suppress(MatchlockError):
            await self._write(encode(method, self._next_id(), params))

    def post_soon(self, method: str, params: Params) -> None:
        """Sends a message that nothing waits for, without waiting for the server to take it."""
        if self.running():
            self._stdin.write(encode(method, self._next_id(), params))

    async def close(self, timeout: float) -> None:
        """Asks the server to close its sandbox and to end; kills it when that takes longer than `timeout`."""
        if not self._origin.is_here():
            return
        deadline = Deadline(timeout + 1.0)
        if self.running():
            with contextlib.suppress(Exception):
                await self._ask_to_close(timeout, deadline)
        # End of input ends the server, even one that this user may not kill.
        self._stdin.close()
        end = asyncio.create_task(in_thread(self._process.wait))
        if not (await asyncio.wait([end], timeout=timeout))[0]:
            # Data that the server has not read yet keeps the end of input from it.
            if self._stdin.transport.get_write_buffer_size():
                self._stdin.transport.abort()
            with contextlib.suppress(OSError):
                self._process.kill()
            await asyncio.wait([end], timeout=1)
        if not end.done():
            end.cancel()
            self._reader.cancel()
        await asyncio.wait([self._reader], timeout=1)
        self._stdout_transport.close()

    async def _ask_to_close(self, timeout: float, deadline: Deadline) -> None:
        call = Call(self._next_id(), "close")
        self._calls[call.id] = call
        try:
            self._stdin.write(encode("close", call.id, {"timeout_seconds": timeout}))
            while await call.next(deadline) is not None:
                pass
        finally:
            self._calls.pop(call.id, None)

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    async def _write(self, line: bytes) -> None:
        if not self.running():
            raise MatchlockError(NOT_RUNNING)
        self._stdin.write(line)
        try:
            # One at a time: up to Python 3.11 a stream lets only one coroutine wait for it.
            async with self._draining:
                await self._stdin.drain()
        except OSError as error:
            raise MatchlockError(NOT_RUNNING) from error

    async def _read(self, stdout: asyncio.StreamReader) -> None:
        try:
            lines = Lines()
            with contextlib.suppress(OSError):
                while chunk := await stdout.read(READ_BYTES):
                    for line in lines.feed(chunk):
                        await self._dispatch(line)
        finally:
            self._ended = True
            calls = list(self._calls.values())
            self._calls.clear()
            error = self._stderr.error()
            self._stderr.close()
            for call in calls:
                call.finish(None, error)
            with contextlib.suppress(Exception):
                self._on_end()

    async def _dispatch(self, line: bytes) -> None:
        message = decode(line)
        if message is None:
            return
        if isinstance(message, Notification) and message.method == "event":
            with contextlib.suppress(Exception):
                self._on_event(message.params)
            return
        id = message.id if isinstance(message, Response) else message.request_id()
        call = None if id is None else self._calls.get(id)
        if call is None:
            return
        if isinstance(message, Response):
            call.finish(message.result, message.error)
        else:
            await call.notify(message)


async def _writer(end: forks.End) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    # Only the flow control of a stream's protocol is used: this end receives nothing.
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), end
    )
    return asyncio.StreamWriter(transport, protocol, None, loop)


async def _reader(end: forks.End) -> tuple[asyncio.StreamReader, asyncio.BaseTransport]:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), end)
    return reader, transport
