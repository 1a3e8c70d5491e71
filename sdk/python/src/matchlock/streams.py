"""Output that is written as it comes, and input that is sent as it is read, for the threaded client.

Not here: the kinds of streams (`sinks`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping

from . import sinks, wire
from .messages import Notification, Params
from .sinks import Reader, Sink, Writer

Post = Callable[[str, Params], None]
"""Sends a message that nothing waits for."""


class Output:
    """Streams by the method of their notifications."""

    def __init__(self, streams: Mapping[str, Writer | None]) -> None:
        self._sinks = {method: Sink(stream) for method, stream in streams.items() if stream is not None}

    def take(self, notification: Notification) -> None:
        """Writes the data of a notification."""
        sink = self._sinks.get(notification.method)
        if sink is not None:
            sink.write(sinks.data(notification.params))

    def finish(self) -> None:
        """Writes the rest at the end."""
        for sink in self._sinks.values():
            sink.finish()


class Side:
    """A source that a thread of its own sends to a command while the command runs."""

    def __init__(self, post: Post, method: str) -> None:
        self._post = post
        self._method = method
        self._stopped = threading.Event()
        self._error: Exception | None = None

    def start(self, id: int) -> None:
        """Starts sending to this request."""
        threading.Thread(target=self._run, args=(id,), name="matchlock-input", daemon=True).start()

    def stop(self) -> None:
        """The command has ended. The thread may wait for its source a while yet."""
        self._stopped.set()

    def check(self) -> None:
        """Raises the error of the source while the command ran."""
        if self._error is not None:
            raise self._error

    def _run(self, id: int) -> None:
        try:
            self._send_all(id)
        except Exception as error:
            if not self._stopped.is_set():
                self._error = error
        # Only now: the next message may end the command, and with it the wait for an error.
        self._finish(id)

    def _send_all(self, id: int) -> None:
        raise NotImplementedError

    def _finish(self, id: int) -> None:
        """Ends the sending."""


class Input(Side):
    """A command's standard input."""

    def __init__(self, post: Post, method: str, stream: Reader | None, acks: bool) -> None:
        super().__init__(post, method)
        self._stream = stream
        self._acks = acks
        self._changed = threading.Condition()
        self._sent = 0
        self._taken = 0

    def taken(self, total: int) -> None:
        """Notes that this many bytes have gone to the command."""
        with self._changed:
            self._taken = total
            self._changed.notify_all()

    def stop(self) -> None:
        super().stop()
        with self._changed:
            self._changed.notify_all()

    def _wait_for_room(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._sent - self._taken < sinks.AHEAD_BYTES or self._stopped.is_set())

    def _send_all(self, id: int) -> None:
        while self._stream is not None and not self._stopped.is_set():
            read = sinks.read_some(self._stream)
            piece = sinks.wait_for_more(self._stream) if read is None else sinks.to_bytes(read)
            if piece == b"":
                return
            if piece and not self._stopped.is_set():
                self._post(f"{self._method}.stdin", wire.input_params(id, piece))
                self._sent += len(piece)
                if self._acks:
                    self._wait_for_room()

    def _finish(self, id: int) -> None:
        self._post(f"{self._method}.stdin_eof", {"id": id})


class Resizes(Side):
    """A terminal's changes of size."""

    def __init__(self, post: Post, method: str, sizes: Iterable[tuple[int, int]]) -> None:
        super().__init__(post, method)
        self._sizes = sizes

    def _send_all(self, id: int) -> None:
        for size in self._sizes:
            if self._stopped.is_set():
                return
            params = wire.resize_params(id, size)
            if params is not None:
                self._post(f"{self._method}.resize", params)
