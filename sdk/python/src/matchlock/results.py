"""The results of calls.

Plain data. Not here: reading them off the wire (`wire`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias


@dataclass
class ExecResult:
    """A command's end, and its whole output."""

    exit_code: int
    """128 + n when signal n ended it."""

    stdout: str
    """Output as text; bytes that are no UTF-8 are replaced."""

    stderr: str
    """Errors as text; bytes that are no UTF-8 are replaced."""

    duration_ms: int
    """Run time."""

    stdout_bytes: bytes = field(default=b"", compare=False, repr=False, kw_only=True)
    """Output as bytes."""

    stderr_bytes: bytes = field(default=b"", compare=False, repr=False, kw_only=True)
    """Errors as bytes."""


@dataclass
class AllowList:
    """The hosts that a sandbox may reach, after a change."""

    changed: list[str]
    """The patterns that were new, or were there."""

    allowed_hosts: list[str]
    """The patterns as they are now."""


@dataclass
class ExecStreamResult:
    """The end of a command whose output was streamed."""

    exit_code: int
    duration_ms: int


@dataclass
class ExecPipeResult:
    """The end of a command run on pipes."""

    exit_code: int
    duration_ms: int


@dataclass
class ExecInteractiveResult:
    """The end of a command run on a terminal."""

    exit_code: int
    duration_ms: int


@dataclass
class FileInfo:
    """A file's metadata, from a directory or `stat`."""

    name: str
    size: int

    mode: int
    """Permissions in the low nine bits; 0x80000000 a directory, 0x08000000 a symbolic link (as Go has it)."""

    is_dir: bool

    modified: datetime | None = field(default=None, compare=False, kw_only=True)
    """Last change of the content, if the server knows."""

    uid: int | None = field(default=None, compare=False, kw_only=True)
    """Owner, if the server knows."""

    gid: int | None = field(default=None, compare=False, kw_only=True)
    """Group, if the server knows."""

    target: str = field(default="", compare=False, kw_only=True)
    """The target of a symbolic link."""

    @property
    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return bool(self.mode & 0x0800_0000)

    @property
    def permissions(self) -> int:
        """The permission bits, such as 0o644."""
        return self.mode & 0o777


ChangeKind: TypeAlias = Literal["created", "modified", "removed", "overflow"]


@dataclass
class FileChange:
    """A change below a watched path."""

    kind: ChangeKind
    """`overflow`: changes were lost, so the tree should be read again."""

    path: str
    """Absolute; empty for an overflow."""


@dataclass
class ProcessInfo:
    """A detached program."""

    id: int

    command: str
    """The command; an argument vector is quoted."""

    running: bool

    exit_code: int | None
    """Once it has ended; 128 + n when signal n ended it."""


@dataclass
class VolumeInfo:
    """A named volume."""

    name: str

    size: str
    """For people, such as `16.0 MB`."""

    path: str
    """The ext4 image on the host."""


@dataclass
class MountInfo:
    """A mount of a running sandbox."""

    guest_path: str

    type: str
    """`memory`, `host_fs` or `overlay`."""

    host_path: str = ""
    """The host's file or directory."""

    readonly: bool = False
    """Whether the guest cannot write to it."""

    added: bool = False
    """Whether it was added while the sandbox ran."""

    failure: str | None = None
    """Why nothing of it can be reached any more."""


@dataclass
class PortForwardBinding:
    """A listener that forwards into the guest."""

    address: str
    local_port: int
    remote_port: int
