"""Detached commands and watches, which outlive the call that made them.

Not here: making requests (`transport`).
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NoReturn

from . import wire
from .deadlines import Deadline
from .errors import RPCError
from .messages import Notification, Params
from .results import FileChange
from .transport import LOST, Transport

Request = Callable[..., Any]


class Process:
    """A detached command."""

    def __init__(self, request: Request, id: int) -> None:
        self._request = request
        self._id = id
        self._exit_code: int | None = None

    @property
    def id(self) -> int:
        """The command's number in the sandbox's list of detached commands; no process id."""
        return self._id

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the command's end and returns its exit code. TimeoutError leaves it running."""
        if self._exit_code is None:
            result = self._request("process_wait", {"process_id": self._id}, deadline=Deadline(timeout))
            self._exit_code = wire.exit_code(result)
        return self._exit_code

    def poll(self) -> int | None:
        """The command's exit code, or None while it runs."""
        if self._exit_code is None:
            for process in wire.processes(self._request("process_list")):
                if process.id == self._id and not process.running:
                    self._exit_code = process.exit_code
        return self._exit_code

    def send_signal(self, number: int) -> None:
        """Sends the command a signal."""
        self._request("process_signal", {"process_id": self._id, "signal": int(number)})

    def terminate(self) -> None:
        """Asks the command to end (SIGTERM)."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the command and its descendants."""
        self._request("process_kill", {"process_id": self._id})

    def output(self) -> bytes:
        """The last 64 KiB of the command's output and errors, in their order."""
        return wire.process_output(self._request("process_output", {"process_id": self._id}))


class Watch:
    """Changes of files, one after another: an iterator, and a context manager that ends the watch."""

    def __init__(self, transport: Transport, params: Params, deadline: Deadline) -> None:
        self._transport = transport
        # A watch that nobody reads must not hold up everything else: changes beyond the bound are an overflow.
        self._call = transport.begin("watch", params, lossy=True)
        try:
            while True:
                notification = self._call.next(deadline)
                if notification is None:
                    self._call.result()
                if notification is None or notification.method == "watch.ready":
                    break
        except BaseException:
            self.close()
            raise

    def next(self, timeout: float | None = None) -> FileChange:
        """The next change. TimeoutError if none comes in time; StopIteration after `close`."""
        deadline = Deadline(timeout)
        while True:
            notification = self._call.next(deadline)
            if notification is None:
                self._ended()
            news = change(notification)
            if news is not None:
                return news

    def __iter__(self) -> Iterator[FileChange]:
        return self

    def __next__(self) -> FileChange:
        return self.next()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
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
        raise StopIteration


def change(notification: Notification) -> FileChange | None:
    """The change that a notification is about, if it is one."""
    if notification.method == LOST:
        return FileChange(kind="overflow", path="")
    if notification.method == "watch.change":
        return wire.file_change(notification.params)
    return None
