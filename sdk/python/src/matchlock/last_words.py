"""The server's standard error, kept for the case that it ends unexpectedly.

It goes to a file without a name, not to a pipe: nobody has to read it, and a server whose client is gone can still
write. Not here: the use of it.
"""

from __future__ import annotations

import os
import tempfile

from .errors import MatchlockError

CLOSED_UNEXPECTEDLY = "Matchlock process closed unexpectedly"

_TAIL_BYTES = 4096
_LINE_CHARACTERS = 500


class LastWords:
    """A standard error."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)

    def fileno(self) -> int:
        """The descriptor for the server."""
        return self._file.fileno()

    def error(self) -> MatchlockError:
        """The error for the requests of a server that ended, with its last line."""
        try:
            end = self._file.seek(0, os.SEEK_END)
            self._file.seek(max(end - _TAIL_BYTES, 0))
            lines = self._file.read().decode("utf-8", errors="replace").split("\n")
        except (OSError, ValueError):
            lines = []
        said = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return MatchlockError(f"{CLOSED_UNEXPECTEDLY}: {said[:_LINE_CHARACTERS]}" if said else CLOSED_UNEXPECTEDLY)

    def close(self) -> None:
        """Forgets the output."""
        self._file.close()
