"""JSON-RPC 2.0 as lines: requests to bytes, bytes to messages.

Pure, and nothing from the server raises: a line that makes no sense is None. Not here: waiting for messages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from .errors import RPCError

Params: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Response:
    """The end of a request."""

    id: int
    result: Any
    error: RPCError | None


@dataclass(frozen=True)
class Notification:
    """A notification about a request, or about the sandbox."""

    method: str
    params: Params

    size: int
    """Bytes of the line."""

    def request_id(self) -> int | None:
        """The id of the request that it belongs to."""
        return _integer(self.params.get("id"))


Message: TypeAlias = Response | Notification


class Lines:
    """Puts lines together from their chunks."""

    def __init__(self) -> None:
        self._begun: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that end in this chunk. All have to be taken."""
        *lines, rest = chunk.split(b"\n")
        for line in lines:
            self._begun.append(line)
            whole = b"".join(self._begun)
            self._begun.clear()
            yield whole
        self._begun.append(rest)


def as_object(value: object) -> Params | None:
    """A JSON object, if it is one."""
    return cast(Params, value) if isinstance(value, dict) else None


def as_list(value: object) -> list[Any] | None:
    """A JSON array, if it is one."""
    is_list = isinstance(value, list)
    return cast("list[Any]", value) if is_list else None


def encode(method: str, id: int, params: Params | None) -> bytes:
    """A request as one line; empty parameters are left out."""
    message: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "id": id}
    if params:
        message["params"] = params
    return json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"


def decode(line: bytes) -> Message | None:
    """A line from the server, if it makes sense."""
    try:
        fields = as_object(json.loads(line))
    except (ValueError, RecursionError):
        return None
    if fields is None:
        return None
    if fields.get("id") is None:
        return _notification(fields, len(line))
    id = _integer(fields["id"])
    if id is None:
        return None
    return Response(id, fields.get("result"), _error(fields.get("error")))


def _notification(fields: Params, size: int) -> Notification | None:
    method = fields.get("method")
    params = as_object(fields.get("params"))
    if not isinstance(method, str) or params is None:
        return None
    return Notification(method, params, size)


def _error(value: Any) -> RPCError | None:
    if value is None:
        return None
    fields = as_object(value) or {}
    code = _integer(fields.get("code"))
    message = fields.get("message")
    return RPCError(
        RPCError.INTERNAL_ERROR if code is None else code,
        message if isinstance(message, str) else "error without a message",
    )


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
