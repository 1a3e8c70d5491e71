"""The steps of each call: one description for the threaded and the asyncio client.

A call is a generator of steps. A client takes the steps in its own way, with threads or on an event loop, and sends
back the result of each. Not here: taking a step (`client`, `aio`), JSON members (`wire`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from . import network_hooks, vfs_hooks, volumes, wire
from .deadlines import Deadline
from .errors import MatchlockError, RPCError
from .messages import Params
from .options import CreateOptions, MountConfig, PortForward
from .results import (
    AllowList,
    ExecInteractiveResult,
    ExecPipeResult,
    ExecResult,
    ExecStreamResult,
    FileInfo,
    MountInfo,
    PortForwardBinding,
    ProcessInfo,
    VolumeInfo,
)
from .vfs_hooks import VFSHooks
from .wire import Command

T = TypeVar("T")
Env: TypeAlias = Mapping[str, str] | None


@dataclass(frozen=True)
class Request:
    """A request to the server; gives its result. `output` takes the notifications before that, and is then finished."""

    method: str
    params: Params | None = None
    deadline: Deadline | None = None
    output: Any = None


@dataclass(frozen=True)
class Interact:
    """A request whose program is sent input, and sizes of its terminal; gives its result."""

    method: str
    params: Params
    deadline: Deadline
    output: Any
    stdin: Any
    resize: Any
    acks: bool


@dataclass(frozen=True)
class Invoke:
    """A function of the user's or of the client's own; gives its result, awaited if it is awaitable."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Read:
    """A piece of a stream; gives its bytes, none at the end."""

    stream: Any


@dataclass(frozen=True)
class Write:
    """A piece of a stream, which is taken when this returns."""

    stream: Any
    piece: bytes


@dataclass(frozen=True)
class Run:
    """A command of the program; gives its output."""

    arguments: list[str]


Step: TypeAlias = Request | Interact | Invoke | Read | Write | Run
Steps: TypeAlias = Generator[Step, Any, T]


class Calls:
    """The calls of one client. `hooks` gives the hooks in force, `check` raises if no call may be made."""

    def __init__(self, hooks: Callable[[], VFSHooks], check: Callable[[], None]) -> None:
        self._hooks = hooks
        self._check = check
        self._extended: bool | None = None
        self.vm_id: str | None = None

    # Life

    def create(
        self,
        options: CreateOptions,
        set_hooks: Callable[[VFSHooks], None],
        start_hook_server: Callable[[network_hooks.Callbacks], Any],
        stop_hook_server: Callable[[], None],
    ) -> Steps[str]:
        """Makes a sandbox; the callbacks of its rules are served from before it is made until it is gone."""
        self._check()
        wire.check_options(options)
        hooks = vfs_hooks.compile_hooks(options.vfs_interception)
        interception, callbacks = network_hooks.compile_hooks(options.network_interception)
        stop_hook_server()
        set_hooks(VFSHooks())
        try:
            if callbacks and interception is not None:
                interception["callback_socket"] = yield Invoke(start_hook_server, (callbacks,))
            params = wire.create_params(options, hooks.wire, interception)
            vm_id = wire.created_id((yield Request("create", params)))
        except BaseException:
            stop_hook_server()
            raise
        self.vm_id = vm_id
        set_hooks(hooks)
        yield from self.port_forward(options.port_forward_addresses, options.port_forwards)
        return vm_id

    def remove(self) -> Steps[None]:
        """Removes what is left of a closed sandbox."""
        if self.vm_id:
            yield Run(["rm", self.vm_id])

    # Commands

    def exec(self, timeout: float | None, command: Command, working_dir: str, user: str, env: Env) -> Steps[ExecResult]:
        """Runs a command and gathers its output."""
        deadline = Deadline(timeout)
        params = yield from self._exec_params(deadline, command, working_dir, user, env)
        return wire.exec_result((yield Request("exec", params, deadline)))

    def exec_stream(
        self, timeout: float | None, command: Command, working_dir: str, user: str, env: Env, output: Any
    ) -> Steps[ExecStreamResult]:
        """Runs a command and passes its output on."""
        deadline = Deadline(timeout)
        params = yield from self._exec_params(deadline, command, working_dir, user, env)
        result = yield Request("exec_stream", params, deadline, output)
        return ExecStreamResult(*wire.exec_end("exec_stream", result))

    def exec_pipe(
        self, timeout: float | None, command: Command, working_dir: str, user: str, env: Env, output: Any, stdin: Any
    ) -> Steps[ExecPipeResult]:
        """Runs a command on pipes."""
        deadline = Deadline(timeout)
        params = yield from self._exec_params(deadline, command, working_dir, user, env)
        acks = stdin is not None and (yield from self._is_extended(deadline))
        if acks:
            params["stdin_ack"] = True
        result = yield Interact("exec_pipe", params, deadline, output, stdin, None, acks)
        return ExecPipeResult(*wire.exec_end("exec_pipe", result))

    def exec_interactive(
        self,
        timeout: float | None,
        command: Command,
        working_dir: str,
        user: str,
        env: Env,
        output: Any,
        stdin: Any,
        size: tuple[int, int],
        resize: Any,
    ) -> Steps[ExecInteractiveResult]:
        """Runs a command on a terminal."""
        deadline = Deadline(timeout)
        members = wire.terminal_size(*size)
        params = yield from self._exec_params(deadline, command, working_dir, user, env, **members)
        result = yield Interact("exec_tty", params, deadline, output, stdin, resize, False)
        return ExecInteractiveResult(*wire.exec_end("exec_tty", result))

    def exec_detached(
        self, timeout: float | None, command: Command, working_dir: str, user: str, env: Env
    ) -> Steps[int]:
        """Starts a command that runs on; gives its number."""
        deadline = Deadline(timeout)
        params = yield from self._exec_params(deadline, command, working_dir, user, env, detached=True)
        yield from self.extend("exec_detached", deadline)
        return wire.process_id((yield Request("exec", params, deadline)))

    def processes(self, timeout: float | None) -> Steps[list[ProcessInfo]]:
        """The detached commands."""
        return wire.processes((yield from self._extension("processes", "process_list", None, timeout)))

    # Files

    def write_file(self, path: str, content: bytes | str, mode: int, timeout: float | None) -> Steps[None]:
        """Writes a file, in one request if it is small."""
        data = wire.content_bytes(content)
        yield from self._decide("write", path, len(data), mode)
        data = yield from self._mutate(path, data, mode)
        if len(data) > wire.WHOLE_FILE_BYTES:
            yield from self._write_pieces(path, data, mode, timeout)
        else:
            yield Request("write_file", wire.write_params(path, data, mode), Deadline(timeout))

    def read_file(self, path: str, timeout: float | None) -> Steps[bytes]:
        """The content of a file."""
        yield from self._decide("read", path)
        return wire.file_content((yield Request("read_file", {"path": path}, Deadline(timeout))))

    def list_files(self, path: str, timeout: float | None) -> Steps[list[FileInfo]]:
        """The entries of a directory."""
        yield from self._decide("readdir", path)
        return wire.file_infos((yield Request("list_files", {"path": path}, Deadline(timeout))))

    def upload(self, path: str, source: Any, mode: int, timeout: float | None) -> Steps[int]:
        """Writes a file from a stream, piece by piece."""
        yield from self._decide("write", path, 0, mode)
        replacement = yield from self._mutate(path, b"", mode)
        if replacement:
            return (yield from self._write_pieces(path, replacement, mode, timeout))
        yield from self.extend("upload", Deadline(timeout))
        offset = 0
        while True:
            piece = yield Read(source)
            # The first piece is written even if there is none: it empties the file.
            if not piece and offset:
                return offset
            yield from self._write_piece(path, piece, mode, offset, timeout)
            offset += len(piece)
            if not piece:
                return offset

    def download(self, path: str, target: Any, offset: int, length: int | None, timeout: float | None) -> Steps[int]:
        """Writes a file, or a part of it, to a stream, piece by piece."""
        yield from self._decide("read", path)
        end = None if length is None else offset + length
        at = offset
        while True:
            wanted = wire.CHUNK_BYTES if end is None else min(wire.CHUNK_BYTES, end - at)
            params: Params = {"path": path, "offset": at, "length": wanted}
            piece = wire.file_content((yield from self._extension("download", "read_file", params, timeout)))
            yield Write(target, piece)
            at += len(piece)
            if len(piece) < wanted or at == end:
                return at - offset

    def stat(self, path: str, follow: bool, timeout: float | None) -> Steps[FileInfo]:
        """The metadata of a file."""
        yield from self._decide("stat", path)
        params: Params = {"path": path, "follow": follow}
        return wire.file_info((yield from self._extension("stat", "stat", params, timeout)))

    def mkdir(self, path: str, mode: int, parents: bool, timeout: float | None) -> Steps[None]:
        """Makes a directory."""
        yield from self._decide("mkdir", path, 0, mode)
        params: Params = {"path": path, "mode": mode, "parents": parents}
        yield from self._extension("mkdir", "mkdir", params, timeout)

    def remove_file(self, path: str, recursive: bool, timeout: float | None) -> Steps[None]:
        """Removes a file or a directory."""
        yield from self._decide("remove_all" if recursive else "remove", path)
        params: Params = {"path": path, "recursive": recursive}
        yield from self._extension("remove_file", "remove", params, timeout)

    def rename(self, path: str, new_path: str, timeout: float | None) -> Steps[None]:
        """Renames a file or a directory."""
        yield from self._decide("rename", path)
        yield from self._extension("rename", "rename", {"from": path, "to": new_path}, timeout)

    # Log and ports

    def log(self, timeout: float | None) -> Steps[str]:
        """The log so far."""
        return wire.log_text((yield Request("log", None, Deadline(timeout))))

    def log_stream(self, output: Any, timeout: float | None) -> Steps[None]:
        """Passes on the log as it comes."""
        yield Request("log_stream", None, Deadline(timeout), output)

    def port_forward(
        self, addresses: Iterable[str] | None, forwards: list[PortForward]
    ) -> Steps[list[PortForwardBinding]]:
        """Forwards ports, if there are any to forward."""
        if not forwards:
            return []
        return wire.bindings((yield Request("port_forward", wire.port_forward_params(addresses, forwards))))

    # Allow list

    def allow_list_add(self, hosts: Iterable[str]) -> Steps[AllowList]:
        """Lets the guest reach more hosts."""
        return wire.allow_list("allow_list_add", "added", (yield Request("allow_list_add", {"hosts": list(hosts)})))

    def allow_list_delete(self, hosts: Iterable[str]) -> Steps[AllowList]:
        """Lets the guest reach fewer hosts."""
        result = yield Request("allow_list_delete", {"hosts": list(hosts)})
        return wire.allow_list("allow_list_delete", "removed", result)

    # Mounts

    def add_mount(self, guest_path: str, mount: MountConfig, timeout: float | None) -> Steps[None]:
        """Adds a mount."""
        params = wire.mount_add_params(guest_path, mount)
        yield from self._extension("add_mount", "mount_add", params, timeout)

    def remove_mount(self, guest_path: str, force: bool, timeout: float | None) -> Steps[None]:
        """Takes away a mount that was added."""
        params: Params = {"guest_path": guest_path, "force": force}
        yield from self._extension("remove_mount", "mount_remove", params, timeout)

    def mounts(self, timeout: float | None) -> Steps[list[MountInfo]]:
        """The mounts."""
        return wire.mounts((yield from self._extension("mounts", "mount_list", None, timeout)))

    # Volumes

    def volume_create(self, name: str, size_mb: int) -> Steps[VolumeInfo]:
        """Makes a named volume."""
        name = volumes.volume_name(name)
        return volumes.created((yield Run(volumes.create_command(name, size_mb))), name, size_mb)

    def volume_list(self) -> Steps[list[VolumeInfo]]:
        """The named volumes."""
        return volumes.listed((yield Run(["volume", "ls", "--json"])))

    def volume_remove(self, name: str) -> Steps[None]:
        """Removes a named volume."""
        yield Run(["volume", "rm", volumes.volume_name(name)])

    # Parts of calls

    def extend(self, feature: str, deadline: Deadline) -> Steps[None]:
        """Makes sure that the server has what the releases up to 0.2 do not: they would ignore what they do not
        know, and do something else."""
        if not (yield from self._is_extended(deadline)):
            raise MatchlockError(f"{feature}: the matchlock program is too old for it")

    def _is_extended(self, deadline: Deadline) -> Steps[bool]:
        if self._extended is None:
            try:
                yield Request("hello", None, deadline)
                self._extended = True
            except RPCError as error:
                if error.code != RPCError.METHOD_NOT_FOUND:
                    raise
                self._extended = False
        return self._extended

    def _extension(self, feature: str, method: str, params: Params | None, timeout: float | None) -> Steps[Any]:
        deadline = Deadline(timeout)
        yield from self.extend(feature, deadline)
        return (yield Request(method, params, deadline))

    def _exec_params(
        self, deadline: Deadline, command: Command, working_dir: str, user: str, env: Env, **more: Any
    ) -> Steps[Params]:
        params = wire.exec_params(command, working_dir, user, env, **more)
        if wire.needs_more_than_old(params):
            yield from self.extend("env and argument lists", deadline)
        return params

    def _write_pieces(self, path: str, content: bytes, mode: int, timeout: float | None) -> Steps[int]:
        yield from self.extend("upload", Deadline(timeout))
        for offset in range(0, len(content), wire.CHUNK_BYTES):
            piece = content[offset : offset + wire.CHUNK_BYTES]
            yield from self._write_piece(path, piece, mode, offset, timeout)
        return len(content)

    def _write_piece(self, path: str, piece: bytes, mode: int, offset: int, timeout: float | None) -> Steps[None]:
        # A piece without an offset replaces the file's old content.
        more: Params = {"offset": offset} if offset else {}
        yield Request("write_file", wire.write_params(path, piece, mode, **more), Deadline(timeout))

    def _decide(self, op: str, path: str, size: int = 0, mode: int = 0) -> Steps[None]:
        self._check()
        deciders = self._hooks().deciders(op, path)
        request = vfs_hooks.action_request(op, path, size, mode)
        for hook in deciders:
            vfs_hooks.check_decision(hook, request, (yield Invoke(hook.callback, (request,))))

    def _mutate(self, path: str, content: bytes, mode: int) -> Steps[bytes]:
        for hook in self._hooks().mutators(path):
            request = vfs_hooks.mutate_request(path, len(content), mode)
            changed = vfs_hooks.mutated(hook, (yield Invoke(hook.callback, (request,))))
            content = content if changed is None else changed
        return content
