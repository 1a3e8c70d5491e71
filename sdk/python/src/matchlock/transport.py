"""The server process, one thread that reads its messages, and threads that wait for their requests.

The reader hands every message to the waiting thread and does nothing else, so neither a line that makes no sense nor
a callback that fails can end it. Notifications are queued up to a bound per request; past it the reader, and so the
server, waits for the consumer. Not here: the messages' meaning.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

from . import forks
from .deadlines import Deadline
from .errors import MatchlockError
from .messages import Lines, Notification, Params, Response, decode, encode
from .server import Server

QUEUE_BYTES = 8 << 20
"""Notifications of one request that may wait for their consumer."""

POLL_MS = (1 << 31) - 1
"""Longest timeout that poll(2) takes."""

READ_BYTES = 256 << 10
"""Most bytes that are read from the server at once."""

LOST = "lost"
"""Method of the notification that stands for those that a lossy call dropped."""

NOT_RUNNING = "Matchlock process not running"

OnNotification = Callable[[Notification], None]


class Call:
    """One request under way: a queue of notifications with an end."""

    def __init__(self, id: int, method: str, lossy: bool = False) -> None:
        self.id = id
        self.method = method
        self._lossy = lossy
        self._lost = False
        self._origin = forks.Origin()
        self._changed = threading.Condition()
        self._queue: deque[Notification] = deque()
        self._queued = 0
        self._abandoned = False
        self._done = False
        self._result: Any = None
        self._error: Exception | None = None

    # The reader's side.

    def notify(self, notification: Notification) -> None:
        """Queues it; while the consumer is too far behind, waits, or drops it if the call is lossy."""
        with self._changed:
            while self._queue and self._queued > QUEUE_BYTES and not self._abandoned:
                if self._lossy:
                    self._lost = True
                    return
                self._changed.wait()
            if self._abandoned or self._done:
                return
            self._queue.append(notification)
            self._queued += notification.size
            self._changed.notify_all()

    def finish(self, result: Any, error: Exception | None) -> None:
        """Ends it; the first end counts."""
        with self._changed:
            if self._done:
                return
            self._done = True
            self._result = result
            self._error = error
            self._changed.notify_all()

    # The consumer's side.

    def abandon(self) -> bool:
        """Stops listening; returns whether the request was still under way."""
        with self._changed:
            self._abandoned = True
            self._queue.clear()
            self._changed.notify_all()
            return not self._done

    def next(self, deadline: Deadline) -> Notification | None:
        """The next notification; None = there are no more, see `result`. Raises TimeoutError."""
        self._origin.check()
        with self._changed:
            if not self._changed.wait_for(self._has_news, deadline.remaining()):
                raise TimeoutError
            if not self._queue:
                if not self._lost:
                    return None
                self._lost = False
                return Notification(LOST, {}, 0)
            notification = self._queue.popleft()
            self._queued -= notification.size
            self._changed.notify_all()
            return notification

    def _has_news(self) -> bool:
        return bool(self._queue) or self._lost or self._done or self._abandoned

    def result(self) -> Any:
        """The result of a finished request."""
        if self._error is not None:
            raise self._error
        return self._result


class Transport:
    """One server process. Every method may be called by any thread of the process that made it."""

    def __init__(self, argv: Sequence[str], on_event: Callable[[Params], None], on_end: Callable[[], None]) -> None:
        self._on_event = on_event
        self._on_end = on_end
        self._lock = threading.Lock()
        self._last_id = 0
        self._calls: dict[int, Call] = {}
        self._ended = False
        self._writing = threading.Lock()
        self._stdin_open = True
        self._unsent = b""
        self._origin = forks.Origin()
        self._wake_read, self._wake_write = forks.pipe()
        try:
            server = Server(argv)
        except BaseException:
            self._wake_read.close()
            self._wake_write.close()
            raise
        self._process = server.process
        self._stderr = server.stderr
        self._stdin = server.stdin
        os.set_blocking(self._stdin.fileno(), False)
        reader = threading.Thread(target=self._read, args=(server.stdout,), name="matchlock-reader", daemon=True)
        reader.start()

    def running(self) -> bool:
        """Whether requests can be made."""
        return not self._ended and self._process.poll() is None

    def request(
        self,
        method: str,
        params: Params | None = None,
        on_notification: OnNotification | None = None,
        deadline: Deadline | None = None,
    ) -> Any:
        """Makes a request and waits for its end. Its notifications are handled on the calling thread; whatever ends
        the wait before the request ended, also cancels the request."""
        deadline = deadline or Deadline()
        with self.open(method, params) as call:
            while True:
                try:
                    notification = call.next(deadline)
                except TimeoutError:
                    text = f"request {method} (id={call.id}) timed out after {deadline.timeout}s"
                    raise TimeoutError(text) from None
                if notification is None:
                    return call.result()
                if on_notification is not None:
                    on_notification(notification)

    @contextlib.contextmanager
    def open(self, method: str, params: Params | None = None) -> Generator[Call, None, None]:
        """Makes a request; leaving the context cancels it if it is still under way."""
        call = self.begin(method, params)
        try:
            yield call
        finally:
            self.end(call)

    def begin(self, method: str, params: Params | None = None, lossy: bool = False) -> Call:
        """Makes a request that `end` has to end."""
        self._origin.check()
        with self._lock:
            if not self.running():
                raise MatchlockError(NOT_RUNNING)
            self._last_id += 1
            call = Call(self._last_id, method, lossy)
            self._calls[call.id] = call
        try:
            self._write(encode(method, call.id, params))
        except BaseException:
            self.end(call)
            raise
        return call

    def end(self, call: Call) -> None:
        """Stops listening to a request, and cancels it if it is still under way."""
        if not self._origin.is_here():
            return
        self._forget(call)
        if call.abandon():
            self.post("cancel", {"id": call.id})

    def post(self, method: str, params: Params) -> None:
        """Sends a message that nothing waits for. A server that is gone is no error."""
        with contextlib.suppress(MatchlockError):
            self._write(encode(method, self._next_id(), params))

    def close(self, timeout: float) -> None:
        """Asks the server to close its sandbox and to end; kills it when that takes longer than `timeout`."""
        if not self._origin.is_here():
            return
        deadline = Deadline(timeout + 1.0)
        if self.running():
            with contextlib.suppress(Exception):
                self._ask_to_close(timeout, deadline)
        # End of input ends the server, even one that this user may not kill.
        self._close_stdin()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            # A server under sudo cannot be killed; its end of input ends it.
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait(1)

    def _ask_to_close(self, timeout: float, deadline: Deadline) -> None:
        with self._lock:
            self._last_id += 1
            call = Call(self._last_id, "close")
            self._calls[call.id] = call
        try:
            self._write(encode("close", call.id, {"timeout_seconds": timeout}), deadline)
            while call.next(deadline) is not None:
                pass
        finally:
            self._forget(call)

    def _next_id(self) -> int:
        with self._lock:
            self._last_id += 1
            return self._last_id

    def _forget(self, call: Call) -> None:
        with self._lock:
            self._calls.pop(call.id, None)

    def _write(self, line: bytes, deadline: Deadline | None = None) -> None:
        """Writes one line whole. Raises MatchlockError when the server is gone, TimeoutError at the deadline."""
        remaining = deadline.remaining() if deadline else None
        if not self._writing.acquire(timeout=-1 if remaining is None else remaining):
            raise TimeoutError
        try:
            if not self._stdin_open:
                raise MatchlockError(NOT_RUNNING)
            self._write_all(line, deadline)
        except OSError as error:
            raise MatchlockError(NOT_RUNNING) from error
        finally:
            self._writing.release()

    def _write_all(self, line: bytes, deadline: Deadline | None) -> None:
        # An interrupted writer leaves the rest of its line to the next one, so that lines never mix.
        rest = memoryview(self._unsent + line if self._unsent else line)
        try:
            while rest:
                try:
                    rest = rest[os.write(self._stdin.fileno(), rest) :]
                except BlockingIOError:
                    self._wait_writable(deadline)
        finally:
            self._unsent = bytes(rest)

    def _wait_writable(self, deadline: Deadline | None) -> None:
        poll = select.poll()
        poll.register(self._stdin.fileno(), select.POLLOUT)
        poll.register(self._wake_read.fileno(), select.POLLIN)
        remaining = deadline.remaining() if deadline else None
        ready = [fd for fd, _ in poll.poll(None if remaining is None else min(remaining * 1000, POLL_MS))]
        if self._wake_read.fileno() in ready:
            raise MatchlockError(NOT_RUNNING)
        if not ready:
            raise TimeoutError

    def _close_stdin(self) -> None:
        # A writer that waits for a server that does not read must not keep its end of input from it.
        with contextlib.suppress(OSError, ValueError):
            self._wake_write.write(b"\0")
        with self._writing:
            if not self._stdin_open:
                return
            self._stdin_open = False
            with contextlib.suppress(OSError):
                self._stdin.close()
            self._wake_read.close()
            self._wake_write.close()

    def _read(self, stdout: forks.End) -> None:
        lines = Lines()
        with contextlib.suppress(OSError, ValueError):
            while chunk := stdout.read(READ_BYTES):
                for line in lines.feed(chunk):
                    self._dispatch(line)
        with contextlib.suppress(OSError):
            stdout.close()
        with self._lock:
            self._ended = True
            calls = list(self._calls.values())
            self._calls.clear()
        error = self._stderr.error()
        self._stderr.close()
        for call in calls:
            call.finish(None, error)
        with contextlib.suppress(Exception):
            self._on_end()

    def _dispatch(self, line: bytes) -> None:
        message = decode(line)
        if message is None:
            return
        if isinstance(message, Notification) and message.method == "event":
            with contextlib.suppress(Exception):
                self._on_event(message.params)
            return
        id = message.id if isinstance(message, Response) else message.request_id()
        with self._lock:
            call = None if id is None else self._calls.get(id)
        if call is None:
            return
        if isinstance(message, Response):
            call.finish(message.result, message.error)
        else:
            call.notify(message)
