"""Detached commands and watches, which outlive the call that made them, on an event loop.

Not here: making requests (`aio_transport`).
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, NoReturn

from . import wire
from .aio_transport import AsyncTransport, Call
from .deadlines import Deadline
from .errors import RPCError
from .messages import Params
from .processes import change
from .results import FileChange

Request = Callable[..., Awaitable[Any]]


class AsyncProcess:
    """A detached command."""

    def __init__(self, request: Request, id: int) -> None:
        self._request = request
        self._id = id
        self._exit_code: int | None = None

    @property
    def id(self) -> int:
        """The command's number in the sandbox's list of detached commands; no process id."""
        return self._id

    async def wait(self, timeout: float | None = None) -> int:
        """Waits for the command's end and returns its exit code. TimeoutError leaves it running."""
        if self._exit_code is None:
            params: Params = {"process_id": self._id}
            result = await self._request("process_wait", params, deadline=Deadline(timeout))
            self._exit_code = wire.exit_code(result)
        return self._exit_code

    async def poll(self) -> int | None:
        """The command's exit code, or None while it runs."""
        if self._exit_code is None:
            for process in wire.processes(await self._request("process_list")):
                if process.id == self._id and not process.running:
                    self._exit_code = process.exit_code
        return self._exit_code

    async def send_signal(self, number: int) -> None:
        """Sends the command a signal."""
        params: Params = {"process_id": self._id, "signal": int(number)}
        await self._request("process_signal", params)

    async def terminate(self) -> None:
        """Asks the command to end (SIGTERM)."""
        await self.send_signal(signal.SIGTERM)

    async def kill(self) -> None:
        """Ends the command and its descendants."""
        await self._request("process_kill", {"process_id": self._id})

    async def output(self) -> bytes:
        """The last 64 KiB of the command's output and errors, in their order."""
        return wire.process_output(await self._request("process_output", {"process_id": self._id}))


class AsyncWatch:
    """Changes of files, one after another: an asynchronous iterator, and a context manager that ends the watch."""

    def __init__(self, transport: AsyncTransport, call: Call) -> None:
        self._transport = transport
        self._call = call

    @staticmethod
    async def start(transport: AsyncTransport, params: Params, deadline: Deadline) -> AsyncWatch:
        """Starts the watch, and waits until no change can be missed."""
        call = await transport.begin("watch", params, lossy=True)
        try:
            while True:
                notification = await call.next(deadline)
                if notification is None:
                    call.result()
                if notification is None or notification.method == "watch.ready":
                    return AsyncWatch(transport, call)
        except BaseException:
            transport.end(call)
            raise

    async def next(self, timeout: float | None = None) -> FileChange:
        """The next change. TimeoutError if none comes in time; StopAsyncIteration after `close`."""
        deadline = Deadline(timeout)
        while True:
            notification = await self._call.next(deadline)
            if notification is None:
                self._ended()
            news = change(notification)
            if news is not None:
                return news

    def __aiter__(self) -> AsyncIterator[FileChange]:
        return self

    async def __anext__(self) -> FileChange:
        return await self.next()

    async def __aenter__(self) -> AsyncWatch:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the watch."""
        self._transport.end(self._call)

    def _ended(self) -> NoReturn:
        try:
            self._call.result()
        except RPCError as error:
            if not error.is_cancelled_error():
                raise
        raise StopAsyncIteration


class StartingWatch(Coroutine[Any, Any, AsyncWatch]):
    """A watch that starts when it is awaited, or entered by `async with`."""

    def __init__(self, start: Coroutine[Any, Any, AsyncWatch]) -> None:
        self._start = start
        self._watch: AsyncWatch | None = None

    def __await__(self) -> Generator[Any, Any, AsyncWatch]:
        return self._start.__await__()

    async def __aenter__(self) -> AsyncWatch:
        self._watch = await self._start
        return self._watch

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        if self._watch is not None:
            self._watch.close()

    # A task may only run coroutines, and this makes it one.

    def send(self, value: Any, /) -> Any:
        return self._start.send(value)

    def throw(self, *args: Any) -> Any:
        return self._start.throw(*args)

    def close(self) -> None:
        self._start.close()
