"""A program's rules and hooks for a sandbox's file operations and HTTP traffic.

Plain data and its form on the wire. Not here: running the hooks (`vfs_hooks`, `network_hooks`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

VFS_HOOK_PHASE_BEFORE: Final = "before"
VFS_HOOK_PHASE_AFTER: Final = "after"
VFS_HOOK_ACTION_ALLOW: Final = "allow"
VFS_HOOK_ACTION_BLOCK: Final = "block"
VFS_HOOK_OP_STAT: Final = "stat"
VFS_HOOK_OP_READDIR: Final = "readdir"
VFS_HOOK_OP_OPEN: Final = "open"
VFS_HOOK_OP_CREATE: Final = "create"
VFS_HOOK_OP_MKDIR: Final = "mkdir"
VFS_HOOK_OP_CHMOD: Final = "chmod"
VFS_HOOK_OP_REMOVE: Final = "remove"
VFS_HOOK_OP_REMOVE_ALL: Final = "remove_all"
VFS_HOOK_OP_RENAME: Final = "rename"
VFS_HOOK_OP_SYMLINK: Final = "symlink"
VFS_HOOK_OP_READLINK: Final = "readlink"
VFS_HOOK_OP_READ: Final = "read"
VFS_HOOK_OP_WRITE: Final = "write"
VFS_HOOK_OP_CLOSE: Final = "close"
VFS_HOOK_OP_SYNC: Final = "sync"
VFS_HOOK_OP_TRUNCATE: Final = "truncate"

NETWORK_HOOK_PHASE_BEFORE: Final = "before"
NETWORK_HOOK_PHASE_AFTER: Final = "after"
NETWORK_HOOK_ACTION_ALLOW: Final = "allow"
NETWORK_HOOK_ACTION_BLOCK: Final = "block"
NETWORK_HOOK_ACTION_MUTATE: Final = "mutate"

VFSHookPhase: TypeAlias = Literal["", "before", "after"]
VFSHookAction: TypeAlias = Literal["allow", "block"]
VFSHookOp: TypeAlias = Literal[
    "stat",
    "readdir",
    "open",
    "create",
    "mkdir",
    "chmod",
    "remove",
    "remove_all",
    "rename",
    "symlink",
    "readlink",
    "read",
    "write",
    "close",
    "sync",
    "truncate",
]
NetworkHookPhase: TypeAlias = Literal["", "before", "after"]
NetworkHookAction: TypeAlias = Literal["allow", "block", "mutate"]


def _set_members(pairs: dict[str, Any]) -> dict[str, Any]:
    """The members that are set; the wire leaves the others out."""
    return {name: value for name, value in pairs.items() if value}


@dataclass
class VFSHookEvent:
    """A file operation that happened, for after-hooks."""

    op: str
    path: str
    size: int
    mode: int
    uid: int
    gid: int


@dataclass
class VFSActionRequest:
    """A file operation about to happen, for an `action_hook` to decide."""

    op: str
    path: str
    size: int
    mode: int
    uid: int
    gid: int


@dataclass
class VFSMutateRequest:
    """A write about to happen, for a `mutate_hook` to replace its content."""

    path: str
    size: int
    mode: int
    uid: int
    gid: int


@dataclass
class VFSHookRule:
    """One rule on file operations: at most one callback, or an action that the host applies by itself."""

    name: str = ""
    """For messages."""

    phase: VFSHookPhase = ""
    """`before` or `after`; empty is before."""

    ops: list[VFSHookOp] = field(default_factory=list[VFSHookOp])
    """The operations that the rule is about; none = all."""

    path: str = ""
    """Glob over guest paths; empty = all."""

    action: VFSHookAction = "allow"
    """The action that the host applies."""

    timeout_ms: int = 0
    """Bound on one callback, in milliseconds; 0 = none."""

    hook: Callable[[VFSHookEvent], Any] | None = None
    """After: called on events, one at a time; events of its own making do not call it again."""

    dangerous_hook: Callable[[Any, VFSHookEvent], Any] | None = None
    """After: called with the client on every event, those of its own making included."""

    mutate_hook: Callable[[VFSMutateRequest], bytes | str | None] | None = None
    """Before: gives new content for this client's own `write_file`, or None to leave it."""

    action_hook: Callable[[VFSActionRequest], VFSHookAction] | None = None
    """Before: decides on this client's own `write_file`, `read_file`, `list_files`."""

    def to_dict(self) -> dict[str, Any]:
        """The rule as the server reads it; callbacks stay here."""
        return {
            "action": self.action,
            **_set_members(
                {
                    "name": self.name,
                    "phase": self.phase,
                    "ops": list(self.ops),
                    "path": self.path,
                    "timeout_ms": max(self.timeout_ms, 0),
                }
            ),
        }


@dataclass
class VFSInterceptionConfig:
    """Rules on file operations below the workspace."""

    emit_events: bool = False
    """Have the server report every file operation."""

    rules: list[VFSHookRule] = field(default_factory=list[VFSHookRule])
    """The rules in their order; the first block wins."""

    def to_dict(self) -> dict[str, Any]:
        """The configuration as the server reads it."""
        return _set_members({"emit_events": self.emit_events, "rules": [rule.to_dict() for rule in self.rules]})


@dataclass
class NetworkBodyTransform:
    """A literal replacement in a response body."""

    find: str
    replace: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The replacement as the server reads it."""
        return {"find": self.find, **_set_members({"replace": self.replace})}


@dataclass
class NetworkHookRequest:
    """One exchange, as a network hook sees it. Bodies are not part of it."""

    phase: NetworkHookPhase = ""
    host: str = ""
    method: str = ""
    path: str = ""
    query: dict[str, str] | None = None
    request_headers: dict[str, list[str]] | None = None
    status_code: int = 0
    response_headers: dict[str, list[str]] | None = None
    is_sse: bool = False


@dataclass
class NetworkHookRequestMutation:
    """Changes to a request. `headers` and `query` replace the whole map; None leaves it."""

    headers: dict[str, list[str]] | None = None
    query: dict[str, str] | None = None
    path: str = ""


@dataclass
class NetworkHookResponseMutation:
    """Changes to a response. `headers` replaces the whole map; None leaves it."""

    headers: dict[str, list[str]] | None = None
    body_replacements: list[NetworkBodyTransform] = field(default_factory=list[NetworkBodyTransform])
    set_body: bytes | str | None = None


@dataclass
class NetworkHookResult:
    """The decision of a network hook."""

    action: NetworkHookAction = "allow"
    request: NetworkHookRequestMutation | None = None
    response: NetworkHookResponseMutation | None = None


NetworkHook: TypeAlias = Callable[
    [NetworkHookRequest],
    NetworkHookResult | Awaitable[NetworkHookResult | None] | None,
]
"""A network callback; only `AsyncClient` runs coroutine functions."""


@dataclass
class NetworkHookRule:
    """One rule on HTTP traffic: a callback, or changes that the host makes by itself."""

    name: str = ""
    """For messages."""

    phase: NetworkHookPhase = ""
    """`before` the request goes out or `after` the response came; empty is before."""

    hosts: list[str] = field(default_factory=list[str])
    """Host globs; none = all."""

    methods: list[str] = field(default_factory=list[str])
    """HTTP methods; none = all."""

    path: str = ""
    """Glob over URL paths; empty = all."""

    action: NetworkHookAction = "allow"
    """The action that the host applies."""

    set_headers: dict[str, str] = field(default_factory=dict[str, str])
    """Before: request headers to set."""

    delete_headers: list[str] = field(default_factory=list[str])
    """Before: request headers to remove."""

    set_query: dict[str, str] = field(default_factory=dict[str, str])
    """Before: query parameters to set."""

    delete_query: list[str] = field(default_factory=list[str])
    """Before: query parameters to remove."""

    rewrite_path: str = ""
    """Before: another path."""

    set_response_headers: dict[str, str] = field(default_factory=dict[str, str])
    """After: response headers to set."""

    delete_response_headers: list[str] = field(default_factory=list[str])
    """After: response headers to remove."""

    body_replacements: list[NetworkBodyTransform] = field(default_factory=list[NetworkBodyTransform])
    """After: literal replacements in the body."""

    timeout_ms: int = 0
    """Bound on one callback, in milliseconds; 0 = none."""

    hook: NetworkHook | None = None
    """Called for every exchange that matches."""

    def to_dict(self) -> dict[str, Any]:
        """The rule as the server reads it; a callback stays here."""
        return {
            "action": self.action,
            **_set_members(
                {
                    "name": self.name,
                    "phase": self.phase,
                    "hosts": list(self.hosts),
                    "methods": list(self.methods),
                    "path": self.path,
                    "set_headers": dict(self.set_headers),
                    "delete_headers": list(self.delete_headers),
                    "set_query": dict(self.set_query),
                    "delete_query": list(self.delete_query),
                    "rewrite_path": self.rewrite_path,
                    "set_response_headers": dict(self.set_response_headers),
                    "delete_response_headers": list(self.delete_response_headers),
                    "body_replacements": [change.to_dict() for change in self.body_replacements],
                    "timeout_ms": max(self.timeout_ms, 0),
                }
            ),
        }


@dataclass
class NetworkInterceptionConfig:
    """Rules on HTTP traffic."""

    rules: list[NetworkHookRule] = field(default_factory=list[NetworkHookRule])
    """The rules in their order."""

    def to_dict(self) -> dict[str, Any]:
        """The configuration as the server reads it."""
        return _set_members({"rules": [rule.to_dict() for rule in self.rules]})
