"""Removes a parent's pipes to its servers from processes made by `os.fork`.

End of input ends a server, and comes only when no process holds the pipe any more. A child would hold copies for as
long as it lives, so it loses them at its birth. Not here: programs that are executed, which inherit none.
"""

from __future__ import annotations

import io
import os
import threading
import weakref

from .errors import MatchlockError

HELD = threading.RLock()
"""Held while ends are opened and closed. Forks wait for it, so that a child knows all of its copies."""

ELSEWHERE = "this client belongs to the process that made it"

_ends: weakref.WeakSet[End] = weakref.WeakSet()
_generation = 0


class End(io.FileIO):
    """One end of a pipe. In a child its descriptor leads to /dev/null, and can still be closed."""

    def __init__(self, descriptor: int, mode: str) -> None:
        super().__init__(descriptor, mode)
        _ends.add(self)

    def close(self) -> None:
        """Closes the end, while no child is being made that would take its number for this pipe."""
        with HELD:
            super().close()


def pipe() -> tuple[End, End]:
    """The end to read from, and the end to write to."""
    with HELD:
        reading, writing = os.pipe()
        return End(reading, "rb"), End(writing, "wb")


class Origin:
    """The process that made an object."""

    def __init__(self) -> None:
        self._generation = _generation

    def is_here(self) -> bool:
        """Whether it is this process."""
        return self._generation == _generation

    def check(self) -> None:
        """Raises MatchlockError in any other process. To be called before a lock is taken: in a child, a thread that
        only the parent has may hold the lock."""
        if not self.is_here():
            raise MatchlockError(ELSEWHERE)


def _in_child() -> None:
    global _generation
    _generation += 1
    HELD.release()
    ends = [end for end in _ends if not end.closed]
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
    except OSError:
        for end in ends:
            io.FileIO.close(end)
        return
    for end in ends:
        os.dup2(nowhere, end.fileno(), inheritable=False)
    os.close(nowhere)


os.register_at_fork(before=HELD.acquire, after_in_parent=HELD.release, after_in_child=_in_child)
