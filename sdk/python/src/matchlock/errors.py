"""The exceptions of this package.

Not here: the conditions, which every method documents.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence


class MatchlockError(Exception):
    """Base of every error this package raises by itself."""


class RPCError(MatchlockError):
    """The server answered a request with an error."""

    PARSE_ERROR = -32700
    INVALID_REQUEST = -32600
    METHOD_NOT_FOUND = -32601
    INVALID_PARAMS = -32602
    INTERNAL_ERROR = -32603
    VM_FAILED = -32000
    EXEC_FAILED = -32001
    FILE_FAILED = -32002
    CANCELLED = -32003

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"[{code}] {message}")
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type[RPCError], tuple[int, str]]:
        return (type(self), (self.code, self.message))

    def is_vm_error(self) -> bool:
        """Whether the error is about the sandbox itself: it did not start, or there is none."""
        return self.code == self.VM_FAILED

    def is_exec_error(self) -> bool:
        """Whether a command could not be run. A command that ran and failed is no error."""
        return self.code == self.EXEC_FAILED

    def is_file_error(self) -> bool:
        """Whether a file operation failed in the guest."""
        return self.code == self.FILE_FAILED

    def is_cancelled_error(self) -> bool:
        """Whether the request was cancelled, or the sandbox closed while it was under way."""
        return self.code == self.CANCELLED


class CommandError(MatchlockError, subprocess.CalledProcessError):
    """A `matchlock` command (`rm`, `volume`) ended with a non-zero status."""

    def __init__(self, returncode: int, cmd: Sequence[str], output: str, stderr: str) -> None:
        subprocess.CalledProcessError.__init__(self, returncode, list(cmd), output, stderr)

    def __str__(self) -> str:
        said = str(self.stderr).strip()
        text = subprocess.CalledProcessError.__str__(self)
        return f"{text}: {said}" if said else text
