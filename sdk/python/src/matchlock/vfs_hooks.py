"""Callbacks on file operations: which rule calls what, and when.

Rules without a callback go to the server; callbacks stay in this process. Before-hooks act on the client's own
file calls, after-hooks on the server's `file` events. Not here: the asyncio form of running them (`aio_hooks`).
"""

from __future__ import annotations

import fnmatch
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .errors import MatchlockError
from .interception import (
    VFS_HOOK_ACTION_ALLOW,
    VFS_HOOK_ACTION_BLOCK,
    VFS_HOOK_OP_WRITE,
    VFS_HOOK_PHASE_AFTER,
    VFS_HOOK_PHASE_BEFORE,
    VFSActionRequest,
    VFSHookEvent,
    VFSHookRule,
    VFSInterceptionConfig,
    VFSMutateRequest,
)
from .messages import Params, as_object

MAX_DANGEROUS = 64
"""Dangerous hooks under way at a time; events past it are dropped, as events may be."""


class Hook(NamedTuple):
    """A callback, and the operations that it is for."""

    name: str
    ops: frozenset[str]
    path: str
    callback: Callable[..., Any]

    def matches(self, op: str, path: str) -> bool:
        """Whether the callback is for this operation. `*` crosses `/` here."""
        return (not self.ops or op in self.ops) and (not self.path or fnmatch.fnmatch(path, self.path))


@dataclass
class VFSHooks:
    """A configuration, split into its parts."""

    wire: Params | None = None
    """The part for the server; None = nothing."""

    after: list[Hook] = field(default_factory=list[Hook])
    dangerous: list[Hook] = field(default_factory=list[Hook])
    mutate: list[Hook] = field(default_factory=list[Hook])
    action: list[Hook] = field(default_factory=list[Hook])

    def mutators(self, path: str) -> list[Hook]:
        """The hooks that may replace the content of a write to `path`."""
        return [hook for hook in self.mutate if hook.matches(VFS_HOOK_OP_WRITE, path)]

    def deciders(self, op: str, path: str) -> list[Hook]:
        """The hooks that decide on `op` at `path`."""
        return [hook for hook in self.action if hook.matches(op, path)]


def compile_hooks(config: VFSInterceptionConfig | None) -> VFSHooks:
    """Splits a configuration. MatchlockError for rules that contradict themselves."""
    hooks = VFSHooks()
    if config is None:
        return hooks
    rules: list[VFSHookRule] = []
    for rule in config.rules:
        kinds: dict[str, tuple[Callable[..., Any] | None, str, list[Hook]]] = {
            "callback hooks": (rule.hook, VFS_HOOK_PHASE_AFTER, hooks.after),
            "dangerous_hook": (rule.dangerous_hook, VFS_HOOK_PHASE_AFTER, hooks.dangerous),
            "mutate_hook": (rule.mutate_hook, VFS_HOOK_PHASE_BEFORE, hooks.mutate),
            "action_hook": (rule.action_hook, VFS_HOOK_PHASE_BEFORE, hooks.action),
        }
        given = [kind for kind, (callback, _, _) in kinds.items() if callback is not None]
        if not given:
            if _action(rule) == "mutate_write":
                raise _invalid(rule, "mutate_write requires mutate_hook callback")
            rules.append(rule)
            continue
        if len(given) > 1:
            raise _invalid(rule, "cannot set more than one callback hook")
        kind = given[0]
        callback, phase, place = kinds[kind]
        if _action(rule) not in ("", VFS_HOOK_ACTION_ALLOW):
            raise _invalid(rule, f"{kind} cannot set action={rule.action!r}")
        # A rule without a phase is a before-rule.
        if (rule.phase.lower() or VFS_HOOK_PHASE_BEFORE) != phase:
            raise _invalid(rule, f"{kind} must use phase={phase}")
        assert callback is not None
        ops = frozenset(op.lower() for op in rule.ops if op)
        place.append(Hook(rule.name, ops, rule.path, callback))
    emit_events = config.emit_events or bool(hooks.after or hooks.dangerous)
    hooks.wire = VFSInterceptionConfig(emit_events=emit_events, rules=rules).to_dict() or None
    return hooks


def _action(rule: VFSHookRule) -> str:
    return (rule.action or "").strip().lower()


def _invalid(rule: VFSHookRule, what: str) -> MatchlockError:
    return MatchlockError(f"invalid vfs hook {rule.name!r}: {what}")


def file_event(params: Params) -> VFSHookEvent | None:
    """The file operation that an event is about, if it is about one."""
    members = as_object(params.get("file"))
    if members is None:
        return None
    op = str(members.get("op", "")).lower()
    if not op:
        return None
    size, mode, uid, gid = (int(members.get(name) or 0) for name in ("size", "mode", "uid", "gid"))
    return VFSHookEvent(op=op, path=str(members.get("path", "")), size=size, mode=mode, uid=uid, gid=gid)


def action_request(op: str, path: str, size: int, mode: int) -> VFSActionRequest:
    """The operation that an action hook decides on."""
    return VFSActionRequest(op=op, path=path, size=size, mode=mode, uid=os.geteuid(), gid=os.getegid())


def check_decision(hook: Hook, request: VFSActionRequest, decision: object) -> None:
    """Raises MatchlockError unless the hook allowed it."""
    said = str(decision).strip().lower()
    if said == VFS_HOOK_ACTION_BLOCK:
        raise MatchlockError(
            f"vfs action hook blocked operation: op={request.op} path={request.path} hook={hook.name!r}"
        )
    if said not in ("", VFS_HOOK_ACTION_ALLOW):
        raise MatchlockError(
            f"invalid action_hook return value for {hook.name!r}: expected "
            f"{VFS_HOOK_ACTION_ALLOW!r}|{VFS_HOOK_ACTION_BLOCK!r}, got {said!r}"
        )


def mutate_request(path: str, size: int, mode: int) -> VFSMutateRequest:
    """The write that a mutate hook may change."""
    return VFSMutateRequest(path=path, size=size, mode=mode, uid=os.geteuid(), gid=os.getegid())


def mutated(hook: Hook, content: object) -> bytes | None:
    """The content from a mutate hook; None = unchanged."""
    if content is None:
        return None
    if isinstance(content, str):
        return content.encode("utf-8")
    if isinstance(content, bytes):
        return content
    raise MatchlockError(f"invalid mutate_hook return type for {hook.name!r}: expected bytes|str|None")


class EventRunner:
    """Runs after-hooks on threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hooks = VFSHooks()
        self._active: VFSHooks | None = None
        self._dangerous = threading.BoundedSemaphore(MAX_DANGEROUS)

    def set(self, hooks: VFSHooks) -> None:
        """Uses these hooks from now on."""
        with self._lock:
            self._hooks = hooks

    def hooks(self) -> VFSHooks:
        """The present hooks."""
        with self._lock:
            return self._hooks

    def run(self, client: object, event: VFSHookEvent) -> None:
        """Starts the hooks of an event. Safe ones run one at a time, and an event that comes meanwhile is not for
        them: it may be of their own making."""
        hooks = self.hooks()
        for hook in hooks.dangerous:
            if hook.matches(event.op, event.path) and self._dangerous.acquire(blocking=False):
                _thread(self._run_dangerous, hook, client, event)
        safe = [hook for hook in hooks.after if hook.matches(event.op, event.path)]
        if not safe:
            return
        with self._lock:
            if self._active is hooks:
                return
            self._active = hooks
        _thread(self._run_safe, hooks, safe, event)

    def _run_dangerous(self, hook: Hook, client: object, event: VFSHookEvent) -> None:
        try:
            _quietly(hook.callback, client, event)
        finally:
            self._dangerous.release()

    def _run_safe(self, hooks: VFSHooks, matching: list[Hook], event: VFSHookEvent) -> None:
        try:
            for hook in matching:
                _quietly(hook.callback, event)
        finally:
            with self._lock:
                if self._active is hooks:
                    self._active = None


def _thread(target: Callable[..., None], *args: Any) -> None:
    threading.Thread(target=target, args=args, name="matchlock-hook", daemon=True).start()


def _quietly(callback: Callable[..., Any], *args: Any) -> None:
    # Nobody waits for an after-hook, so its failure has no receiver.
    try:
        callback(*args)
    except Exception:
        pass
