"""Calls as JSON members, and back: the common part of the threaded and the asyncio client.

Pure functions. Not here: lines (`messages`), hooks, processes.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Final, TypeAlias, cast

from . import sinks
from .errors import MatchlockError
from .messages import Params, as_list, as_object
from .options import CreateOptions, MountConfig, PortForward
from .results import (
    AllowList,
    ChangeKind,
    ExecResult,
    FileChange,
    FileInfo,
    MountInfo,
    PortForwardBinding,
    ProcessInfo,
)

Command: TypeAlias = str | Sequence[str]
"""A shell command, or a program with its arguments, which needs no shell in the image."""

CHUNK_BYTES: Final = 1 << 20
"""Length of a file's piece in one request when the file is streamed."""

WHOLE_FILE_BYTES: Final = 4 << 20
"""Longest content for which `write_file` needs only one request."""

DEFAULT_ADDRESS = "127.0.0.1"
DEFAULT_WORKSPACE = "/workspace"


def invalid(method: str, what: str) -> MatchlockError:
    """The server sent an answer that this client does not understand."""
    return MatchlockError(f"invalid {method} response: {what}")


# create


def check_options(options: CreateOptions) -> None:
    """Refuses options that are wrong on any server."""
    if not options.image:
        raise MatchlockError("image is required (e.g., alpine:latest)")
    if options.network_mtu < 0:
        raise MatchlockError("network mtu must be > 0")
    network = (
        options.allowed_hosts
        or options.denied_hosts
        or options.passthrough_hosts
        or options.secrets
        or options.force_interception
        or options.network_interception is not None
    )
    if options.no_network and network:
        raise MatchlockError(
            "no network cannot be combined with allowed hosts, denied hosts, passthrough hosts, secrets, "
            "forced interception, or network interception rules"
        )


def create_params(options: CreateOptions, vfs_interception: Params | None, interception: Params | None) -> Params:
    """The parameters of `create`; members that are not set are left out."""
    params: Params = {"image": options.image}
    if options.kernel_ref:
        params["kernel"] = {"ref": options.kernel_ref}
    if options.privileged:
        params["privileged"] = True
    resources: Params = {
        "cpus": options.cpus,
        "memory_mb": options.memory_mb,
        "disk_size_mb": options.disk_size_mb,
        "time_limit_seconds": options.timeout_seconds,
    }
    resources = {name: value for name, value in resources.items() if value}
    if resources:
        params["resources"] = resources
    network = _network(options, interception)
    if network is not None:
        params["network"] = network
    vfs = _vfs(options, vfs_interception)
    if vfs:
        params["vfs"] = vfs
    if options.disks:
        params["extra_disks"] = [disk.to_dict(path) for path, disk in options.disks.items()]
    if options.env:
        params["env"] = dict(options.env)
    if options.image_config is not None:
        params["image_config"] = options.image_config.to_dict()
    if options.launch_entrypoint:
        params["launch_entrypoint"] = True
    if options.init:
        params["init"] = True
    return params


def _vfs(options: CreateOptions, interception: Params | None) -> Params:
    vfs: Params = {}
    if options.mounts:
        vfs["mounts"] = {path: mount.to_dict() for path, mount in options.mounts.items()}
        vfs["workspace"] = DEFAULT_WORKSPACE
    if options.workspace:
        vfs["workspace"] = options.workspace
    if interception is not None:
        vfs["interception"] = interception
    return vfs


def _network(options: CreateOptions, interception: Params | None) -> Params | None:
    # The server replaces its default as a whole, so a network object that is sent has to be complete.
    if options.no_network:
        return {"no_network": True, **_names(options)}
    explicit = options.block_private_ips_set or options.block_private_ips
    extras: Params = {**_names(options)}
    if options.add_hosts:
        extras["add_hosts"] = [{"host": entry.host, "ip": entry.ip} for entry in options.add_hosts]
    if options.force_interception or interception is not None:
        extras["intercept"] = True
    if interception is not None:
        extras["interception"] = interception
    if options.secrets:
        extras["secrets"] = {secret.name: _secret(secret) for secret in options.secrets}
    if options.network_mtu > 0:
        extras["mtu"] = options.network_mtu
    if options.denied_hosts:
        extras["denied_hosts"] = list(options.denied_hosts)
    if options.passthrough_hosts:
        extras["passthrough_hosts"] = list(options.passthrough_hosts)
    if options.network_arrival != "auto":
        extras["arrival"] = options.network_arrival
    if not (extras or options.allowed_hosts or explicit):
        return None
    return {
        "allowed_hosts": list(options.allowed_hosts),
        "block_private_ips": options.block_private_ips if explicit else True,
        **extras,
    }


def _names(options: CreateOptions) -> Params:
    names: Params = {}
    if options.dns_servers:
        names["dns_servers"] = list(options.dns_servers)
    if options.hostname:
        names["hostname"] = options.hostname
    return names


def _secret(secret: Any) -> Params:
    wire: Params = {"value": secret.value, "hosts": list(secret.hosts)}
    if secret.placeholder:
        wire["placeholder"] = secret.placeholder
    return wire


def created_id(result: Any) -> str:
    """The id in the result of `create`."""
    return str(_member("create", result, "id"))


# exec


def exec_params(command: Command, working_dir: str, user: str, env: Mapping[str, str] | None, **more: Any) -> Params:
    """The parameters of the `exec` family."""
    params: Params = {}
    if isinstance(command, str):
        params["command"] = command
    else:
        # Bytes are a sequence, too: one of numbers.
        _refuse_bytes(command)
        params["argv"] = [_argument(argument) for argument in command]
    if working_dir:
        params["working_dir"] = working_dir
    if user:
        params["user"] = user
    if env:
        params["env"] = dict(env)
    return {**params, **more}


def _argument(value: object) -> str:
    _refuse_bytes(value)
    return str(value)


def _refuse_bytes(value: object) -> None:
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError("a command and its arguments are str, not bytes")


def needs_more_than_old(params: Params) -> bool:
    """Whether a command uses members that the releases up to 0.2 do not know."""
    return "argv" in params or "env" in params


def exec_end(method: str, result: Any) -> tuple[int, int]:
    """Exit code and duration."""
    return (_integer(method, result, "exit_code"), _integer(method, result, "duration_ms"))


def exec_result(result: Any) -> ExecResult:
    """The result of `exec`."""
    exit_code, duration_ms = exec_end("exec", result)
    stdout = sinks.data(_object("exec", result), "stdout")
    stderr = sinks.data(_object("exec", result), "stderr")
    return ExecResult(
        exit_code=exit_code,
        stdout=sinks.text(stdout),
        stderr=sinks.text(stderr),
        duration_ms=duration_ms,
        stdout_bytes=stdout,
        stderr_bytes=stderr,
    )


def terminal_size(rows: int, cols: int) -> Params:
    """The size of a terminal, by default 24 by 80."""
    return {"rows": rows if rows > 0 else 24, "cols": cols if cols > 0 else 80}


def resize_params(id: int, size: Any) -> Params | None:
    """A change of a terminal's size, if it is one."""
    try:
        rows, cols = (int(number) for number in size)
    except (TypeError, ValueError):
        return None
    return {"id": id, "rows": rows, "cols": cols}


def input_params(id: int, piece: bytes) -> Params:
    """A piece of input."""
    return {"id": id, "data": base64.b64encode(piece).decode("ascii")}


def taken(params: Params) -> int:
    """The content of `exec_pipe.stdin_ack`."""
    return _integer("exec_pipe", params, "bytes")


# files


def file_infos(result: Any) -> list[FileInfo]:
    """The result of `list_files`."""
    return [_file_info("list_files", entry) for entry in _list("list_files", result, "files")]


def file_info(result: Any) -> FileInfo:
    """The result of `stat`."""
    return _file_info("stat", result)


def _file_info(method: str, entry: Any) -> FileInfo:
    return FileInfo(
        name=_string(method, entry, "name"),
        size=_integer(method, entry, "size"),
        mode=_integer(method, entry, "mode"),
        is_dir=bool(_member(method, entry, "is_dir")),
        modified=_time(entry.get("mod_time")),
        uid=entry.get("uid"),
        gid=entry.get("gid"),
        target=str(entry.get("target") or ""),
    )


_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z")


def _time(value: Any) -> datetime | None:
    """RFC 3339 in UTC. Servers that do not know a time send the year 1."""
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None or value.startswith("0001-"):
        return None
    try:
        whole = datetime.fromisoformat(match[1]).replace(tzinfo=timezone.utc)
    except ValueError:
        return None
    return whole + timedelta(microseconds=int((match[2] or "").ljust(9, "0")) // 1000)


_KINDS: dict[str, ChangeKind] = {"created": "created", "modified": "modified", "removed": "removed"}


def file_change(params: Params) -> FileChange:
    """The content of `watch.change`. A kind that this client does not know counts as an overflow."""
    kind = _KINDS.get(str(params.get("kind")), "overflow")
    return FileChange(kind=kind, path=str(params.get("path", "")))


def file_content(result: Any) -> bytes:
    """The result of `read_file`."""
    return sinks.data(_object("read_file", result), "content")


def log_text(result: Any) -> str:
    """The result of `log`."""
    return sinks.text(sinks.data(_object("log", result), "content"))


def content_bytes(content: object) -> bytes:
    """The content to write to a file."""
    if isinstance(content, str):
        return content.encode("utf-8")
    try:
        view = memoryview(cast(bytes, content))
    except TypeError:
        raise TypeError(f"content must be str or bytes-like, not {type(content).__name__}") from None
    return bytes(view)


def write_params(path: str, content: bytes, mode: int, **more: Any) -> Params:
    """The parameters of `write_file`."""
    encoded = base64.b64encode(content).decode("ascii")
    return {"path": path, "content": encoded, "mode": mode, **more}


# detached programs


def process_id(result: Any) -> int:
    """The result of a detached `exec`."""
    return _integer("exec", result, "process_id")


def exit_code(result: Any) -> int:
    """The result of `process_wait`."""
    return _integer("process_wait", result, "exit_code")


def process_output(result: Any) -> bytes:
    """The result of `process_output`."""
    return sinks.data(_object("process_output", result), "output")


def processes(result: Any) -> list[ProcessInfo]:
    """The result of `process_list`."""
    return [
        ProcessInfo(
            id=_integer("process_list", entry, "process_id"),
            command=_string("process_list", entry, "command"),
            running=bool(_member("process_list", entry, "running")),
            exit_code=entry.get("exit_code"),
        )
        for entry in _list("process_list", result, "processes")
    ]


# port forwards


def port_forwards(specs: Iterable[str]) -> list[PortForward]:
    """`[LOCAL_PORT:]REMOTE_PORT` each."""
    return [_port_forward(str(spec).strip()) for spec in specs]


def _port_forward(spec: str) -> PortForward:
    if not spec:
        raise MatchlockError("invalid port-forward spec: empty spec")
    ports = spec.split(":")
    if len(ports) > 2:
        raise MatchlockError(f"invalid port-forward spec: {spec!r} (expected [LOCAL_PORT:]REMOTE_PORT)")
    local = _port(ports[0], "local") if len(ports) == 2 else None
    remote = _port(ports[-1], "remote")
    return PortForward(local_port=remote if local is None else local, remote_port=remote)


def _port(value: str, role: str) -> int:
    value = value.strip()
    if not value:
        raise MatchlockError(f"invalid port-forward spec: empty {role} port")
    try:
        port = int(value, 10)
    except ValueError as error:
        raise MatchlockError(f"invalid port value {value!r}") from error
    if not 1 <= port <= 65535:
        raise MatchlockError(f"invalid port value {port}: must be in range 1-65535")
    return port


def port_forward_params(addresses: Iterable[str] | None, forwards: Iterable[PortForward]) -> Params:
    """The parameters of `port_forward`."""
    return {
        "forwards": [
            {"local_port": int(forward.local_port), "remote_port": int(forward.remote_port)} for forward in forwards
        ],
        "addresses": list(addresses or []) or [DEFAULT_ADDRESS],
    }


def bindings(result: Any) -> list[PortForwardBinding]:
    """The result of `port_forward`."""
    return [_binding(entry) for entry in _list("port_forward", result, "bindings")]


def _binding(entry: Params) -> PortForwardBinding:
    address = _string("port_forward", entry, "address").strip()
    if not address:
        raise invalid("port_forward", "binding address is required")
    binding = PortForwardBinding(
        address=address,
        local_port=_integer("port_forward", entry, "local_port"),
        remote_port=_integer("port_forward", entry, "remote_port"),
    )
    for name, port in (("local_port", binding.local_port), ("remote_port", binding.remote_port)):
        if not 1 <= port <= 65535:
            raise invalid("port_forward", f"{name} must be in range 1-65535")
    return binding


# allow list


def allow_list(method: str, changed: str, result: Any) -> AllowList:
    """The result of `allow_list_add` and `allow_list_delete`."""
    return AllowList(changed=_strings(method, result, changed), allowed_hosts=_strings(method, result, "allowed_hosts"))


def mount_add_params(guest_path: str, mount: MountConfig) -> Params:
    """The parameters of `mount_add`."""
    return {"guest_path": guest_path, "mount": mount.to_dict()}


def mounts(result: Any) -> list[MountInfo]:
    """The result of `mount_list`."""
    return [_mount(entry) for entry in _list("mount_list", result, "mounts")]


def _mount(entry: Params) -> MountInfo:
    failure = entry.get("failure")
    return MountInfo(
        guest_path=_string("mount_list", entry, "guest_path"),
        type=_string("mount_list", entry, "type"),
        host_path=str(entry.get("host_path") or ""),
        readonly=bool(entry.get("readonly")),
        added=bool(entry.get("added")),
        failure=None if failure is None else str(failure),
    )


# members


def _member(method: str, result: Any, name: str) -> Any:
    fields = _object(method, result)
    if name not in fields:
        raise invalid(method, f"missing {name}")
    return fields[name]


def _object(method: str, result: Any) -> Params:
    fields = as_object(result)
    if fields is None:
        raise invalid(method, "expected object")
    return fields


def _integer(method: str, result: Any, name: str) -> int:
    value = _member(method, result, name)
    if not isinstance(value, int):
        raise invalid(method, f"{name} must be an integer")
    return value


def _string(method: str, result: Any, name: str) -> str:
    value = _member(method, result, name)
    if not isinstance(value, str):
        raise invalid(method, f"{name} must be a string")
    return value


def _strings(method: str, result: Any, name: str) -> list[str]:
    # A missing list is an empty one.
    entries = as_list(_object(method, result).get(name) or [])
    if entries is None or not all(isinstance(entry, str) for entry in entries):
        raise invalid(method, f"{name} must be a list of strings")
    return [str(entry) for entry in entries]


def _list(method: str, result: Any, name: str) -> list[Params]:
    # A missing list is an empty one.
    entries = as_list(_object(method, result).get(name) or [])
    if entries is None:
        raise invalid(method, f"{name} must be a list")
    if any(as_object(entry) is None for entry in entries):
        raise invalid(method, f"{name} entry must be an object")
    return entries
