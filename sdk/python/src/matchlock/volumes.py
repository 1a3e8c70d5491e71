"""Named volumes and removal, which are commands of the program and not requests to a server.

Command lines and their output. Not here: running them.
"""

from __future__ import annotations

import json
from typing import Any

from .errors import MatchlockError
from .messages import Params, as_list, as_object
from .results import VolumeInfo


def volume_name(name: str) -> str:
    """A name, without blanks around it."""
    name = name.strip()
    if not name:
        raise MatchlockError("volume name is required")
    return name


def create_command(name: str, size_mb: int) -> list[str]:
    """Arguments that make a volume."""
    if size_mb <= 0:
        raise MatchlockError("volume size must be > 0")
    return ["volume", "create", name, "--size", str(size_mb), "--json"]


def created(output: str, name: str, size_mb: int) -> VolumeInfo:
    """The volume that was made."""
    what = "volume create output"
    fields = as_object(_json(output, what)) or {}
    if not _text(fields, "path"):
        raise MatchlockError(f"failed to parse {what}: missing Path")
    return VolumeInfo(
        name=_text(fields, "name") or name,
        size=_text(fields, "size") or f"{size_mb:.1f} MB",
        path=_text(fields, "path"),
    )


def listed(output: str) -> list[VolumeInfo]:
    """All volumes."""
    what = "volume list output"
    entries = as_list(_json(output, what))
    if entries is None:
        raise MatchlockError(f"failed to parse {what}: expected array")
    return [_volume(what, entry) for entry in entries]


def _volume(what: str, entry: Any) -> VolumeInfo:
    fields = as_object(entry) or {}
    volume = VolumeInfo(name=_text(fields, "name"), size=_text(fields, "size"), path=_text(fields, "path"))
    if not volume.name or not volume.path:
        raise MatchlockError(f"failed to parse {what} line: {entry!r}")
    return volume


def _json(output: str, what: str) -> Any:
    try:
        return json.loads(output)
    except ValueError as error:
        raise MatchlockError(f"failed to parse {what}: {error}") from error


def _text(fields: Params, name: str) -> str:
    return str(fields.get(name, "")).strip()
