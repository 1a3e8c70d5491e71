"""Callbacks on HTTP traffic, and the socket on which the server asks for them.

For each callback the server connects, writes one JSON object as a line, reads one, and hangs up. Not here: the
answer's effect on the traffic.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import tempfile
import threading
from typing import Any, NamedTuple

from .errors import MatchlockError
from .interception import (
    NETWORK_HOOK_ACTION_ALLOW,
    NetworkHook,
    NetworkHookPhase,
    NetworkHookRequest,
    NetworkHookRequestMutation,
    NetworkHookResponseMutation,
    NetworkHookResult,
    NetworkInterceptionConfig,
)
from .messages import Params, as_list, as_object

MAX_REQUEST_BYTES = 16 << 20
"""A callback's request line."""

MAX_CONCURRENT = 64
"""Callbacks under way at a time; more wait to be accepted."""


class Callback(NamedTuple):
    """A hook and the phase it is for; empty = both."""

    phase: str
    hook: NetworkHook


Callbacks = dict[str, Callback]


def compile_hooks(config: NetworkInterceptionConfig | None) -> tuple[Params | None, Callbacks]:
    """The rules as the server reads them, and the callbacks it may ask for."""
    rules: list[Params] = []
    callbacks: Callbacks = {}
    for number, rule in enumerate(config.rules if config is not None else [], start=1):
        wire = rule.to_dict()
        if rule.hook is not None:
            if (rule.action or "").strip().lower() not in ("", NETWORK_HOOK_ACTION_ALLOW):
                raise MatchlockError(
                    f"invalid network hook {rule.name!r}: callback hooks cannot set action={rule.action!r}"
                )
            wire["callback_id"] = f"network_hook_{number}"
            callbacks[wire["callback_id"]] = Callback((rule.phase or "").strip().lower(), rule.hook)
        rules.append(wire)
    return ({"rules": rules} if rules else None), callbacks


def read_request(callbacks: Callbacks, line: bytes) -> tuple[NetworkHook, NetworkHookRequest]:
    """The hook that a request line is for, and its arguments. MatchlockError = the answer is this error."""
    try:
        members = as_object(json.loads(line))
    except (ValueError, RecursionError) as error:
        raise MatchlockError(str(error)) from error
    if members is None:
        raise MatchlockError("network hook callback request must be an object")
    callback = callbacks.get(str(members.get("callback_id", "")).strip())
    if callback is None:
        raise MatchlockError("network hook callback not found")
    said = str(members.get("phase", "")).strip().lower()
    phase: NetworkHookPhase = "before" if said == "before" else "after" if said == "after" else ""
    if callback.phase and callback.phase != phase:
        raise MatchlockError("network hook phase mismatch")
    status = members.get("status_code")
    request = NetworkHookRequest(
        phase=phase,
        host=str(members.get("host", "")),
        method=str(members.get("method", "")),
        path=str(members.get("path", "")),
        query=_strings(members.get("query")),
        request_headers=_lists(members.get("request_headers")),
        status_code=status if isinstance(status, int) else 0,
        response_headers=_lists(members.get("response_headers")),
        is_sse=bool(members.get("is_sse")),
    )
    return callback.hook, request


def answer(result: object) -> Params:
    """The result of a hook, as the server reads it."""
    if result is None:
        return {}
    if not isinstance(result, NetworkHookResult):
        raise MatchlockError("invalid network hook result: expected NetworkHookResult or None")
    wire: Params = {}
    action = str(result.action or "").strip()
    if action:
        wire["action"] = action
    request = _request_changes(result.request) if result.request is not None else {}
    if request:
        wire["request"] = request
    response = _response_changes(result.response) if result.response is not None else {}
    if response:
        wire["response"] = response
    return wire


def _request_changes(change: NetworkHookRequestMutation) -> Params:
    wire: Params = {}
    if change.headers is not None:
        wire["headers"] = _lists(change.headers)
    if change.query is not None:
        wire["query"] = _strings(change.query)
    if change.path:
        wire["path"] = change.path
    return wire


def _response_changes(change: NetworkHookResponseMutation) -> Params:
    wire: Params = {}
    if change.headers is not None:
        wire["headers"] = _lists(change.headers)
    if change.body_replacements:
        wire["body_replacements"] = [replacement.to_dict() for replacement in change.body_replacements]
    body: Any = change.set_body
    if body is not None:
        if isinstance(body, str):
            body = body.encode("utf-8")
        if not isinstance(body, bytes):
            raise MatchlockError("invalid network hook response set_body type: expected bytes|str|None")
        wire["set_body_base64"] = base64.b64encode(body).decode("ascii")
    return wire


def _strings(value: Any) -> dict[str, str] | None:
    members = as_object(value)
    if members is None:
        return None
    return {str(name): str(item) for name, item in members.items()}


def _lists(value: Any) -> dict[str, list[str]] | None:
    members = as_object(value)
    if members is None:
        return None
    lists = {str(name): [items] if (many := as_list(items)) is None else many for name, items in members.items()}
    return {name: [str(item) for item in items] for name, items in lists.items()}


def encode_answer(wire: Params) -> bytes:
    """An answer as a line."""
    return json.dumps(wire).encode("ascii") + b"\n"


def socket_directory() -> str:
    """A new directory for the socket, for this user only."""
    return tempfile.mkdtemp(prefix="matchlock-network-hook-")


class HookServer:
    """The callback socket, served by threads."""

    def __init__(self, callbacks: Callbacks) -> None:
        self._callbacks = callbacks
        self._slots = threading.BoundedSemaphore(MAX_CONCURRENT)
        self._directory = socket_directory()
        self.path = os.path.join(self._directory, "hook.sock")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(self.path)
            self._listener.listen()
        except BaseException:
            self.stop()
            raise
        threading.Thread(target=self._accept, name="matchlock-network-hooks", daemon=True).start()

    def stop(self) -> None:
        """Ends the socket, and removes it."""
        # Linux wakes an accepting thread by shutdown, others by close.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _accept(self) -> None:
        while True:
            self._slots.acquire()
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(
                target=self._serve, args=(connection,), name="matchlock-network-hook", daemon=True
            )
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as reader, contextlib.suppress(OSError):
                line = reader.readline(MAX_REQUEST_BYTES)
                if line:
                    connection.sendall(encode_answer(self._answer(line)))
        finally:
            self._slots.release()

    def _answer(self, line: bytes) -> Params:
        try:
            hook, request = read_request(self._callbacks, line)
            return answer(hook(request))
        except Exception as error:
            return {"error": str(error) or type(error).__name__}
