"""The client: one server process, one sandbox at a time, any number of threads.

What a call means and how it is made. Not here: the process and its reader (`transport`), JSON members (`wire`),
what matches a hook (`vfs_hooks`, `network_hooks`).
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import IO, Any

from . import forks, network_hooks, vfs_hooks, volumes, wire
from .builder import Sandbox
from .deadlines import LONGEST_SECONDS, Deadline, seconds
from .errors import CommandError, MatchlockError, RPCError
from .messages import Notification, Params
from .network_hooks import HookServer
from .options import Config, CreateOptions, PortForward
from .processes import Process, Watch
from .results import (
    ExecInteractiveResult,
    ExecPipeResult,
    ExecResult,
    ExecStreamResult,
    FileInfo,
    PortForwardBinding,
    ProcessInfo,
    VolumeInfo,
)
from .sinks import Reader, Writer
from .streams import Input, Output, Resizes, Side, fill, pieces
from .transport import NOT_RUNNING, OnNotification, Transport
from .vfs_hooks import EventRunner, VFSHooks
from .wire import Command

CLOSE_SECONDS = 2.0
"""How long `close` waits when it is not told."""


def close_seconds(timeout: float | None) -> float:
    """How long `close` waits. Raises ValueError and TypeError for what is no time."""
    limit = seconds(timeout)
    if limit is None and timeout is not None:
        return LONGEST_SECONDS
    return limit if limit and limit > 0 else CLOSE_SECONDS


class Client:
    """A sandbox, driven through `matchlock rpc`. All public methods are thread-safe.

    Without a `Config` the program is the one named by the environment variable `MATCHLOCK_BIN`, else `matchlock`.
    Every `timeout` is in seconds, without end if it is infinite; past it the request is cancelled and TimeoutError
    raised. A stream given for output gets text, or bytes if it is binary; an exception from it cancels the command and
    reaches the caller. A client belongs to the process that starts it: a child made by fork gets MatchlockError.
    """

    def __init__(self, config: Config | None = None) -> None:
        self._config = config or Config(binary_path=os.environ.get("MATCHLOCK_BIN", "matchlock"))
        self._origin = forks.Origin()
        self._lock = threading.Lock()
        self._transport: Transport | None = None
        self._closed = False
        self._vm_id: str | None = None
        self._extended: bool | None = None
        self._events = EventRunner()
        self._hook_server: HookServer | None = None

    def __enter__(self) -> Client:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def vm_id(self) -> str | None:
        """The sandbox's id, from `create` on."""
        return self._vm_id

    # Life

    def start(self) -> None:
        """Starts the server, if it has not been started."""
        self._check_process()
        if not self._origin.is_here():
            # It was made before a fork and not started, so it may be used here; a thread that is not may hold its lock.
            self._origin, self._lock = forks.Origin(), threading.Lock()
        with self._lock:
            if self._transport is not None:
                return
            command = [self._config.binary_path, "rpc"]
            if self._config.use_sudo:
                command.insert(0, "sudo")
            self._transport = Transport(command, self._on_event, self._stop_hook_server)

    def close(self, timeout: float = 0) -> None:
        """Shuts the sandbox down and ends the server; after `timeout` seconds by force. 0 stands for 2 seconds. Does
        nothing before `start`, and in a child of the process that started the server."""
        limit = close_seconds(timeout)
        if not self._origin.is_here():
            return
        with self._lock:
            transport = self._transport
            if transport is None or self._closed:
                return
            self._closed = True
        self._events.set(VFSHooks())
        self._stop_hook_server()
        transport.close(limit)

    def remove(self) -> None:
        """Removes what is left of a closed sandbox: its record and its log."""
        if self._vm_id:
            self._command(["rm", self._vm_id])

    def create(self, opts: CreateOptions | None = None) -> str:
        """Makes a sandbox and gives its id. A second one takes the place of the first."""
        self._check_process()
        options = opts or CreateOptions()
        wire.check_options(options)
        hooks = vfs_hooks.compile_hooks(options.vfs_interception)
        interception, callbacks = network_hooks.compile_hooks(options.network_interception)
        self._stop_hook_server()
        self._events.set(VFSHooks())
        try:
            if callbacks and interception is not None:
                interception["callback_socket"] = self._start_hook_server(callbacks)
            params = wire.create_params(options, hooks.wire, interception)
            vm_id = wire.created_id(self._request("create", params))
        except BaseException:
            self._stop_hook_server()
            raise
        self._vm_id = vm_id
        self._events.set(hooks)
        self._port_forward(options.port_forward_addresses, options.port_forwards)
        return vm_id

    def launch(self, sandbox: Sandbox) -> str:
        """Makes a sandbox, starts the image's entrypoint in it, and gives the sandbox's id."""
        return self.create(dataclasses.replace(sandbox.options(), launch_entrypoint=True))

    # Commands

    def exec(
        self,
        command: Command,
        working_dir: str = "",
        timeout: float | None = None,
        *,
        user: str = "",
        env: Mapping[str, str] | None = None,
    ) -> ExecResult:
        """Runs a shell command, or a list of program and arguments, and gives all it wrote."""
        deadline = Deadline(timeout)
        params = self._exec_params(deadline, command, working_dir, user, env)
        return wire.exec_result(self._request("exec", params, deadline=deadline))

    def exec_stream(
        self,
        command: Command,
        stdout: Writer | None = None,
        stderr: Writer | None = None,
        working_dir: str = "",
        timeout: float | None = None,
        *,
        user: str = "",
        env: Mapping[str, str] | None = None,
    ) -> ExecStreamResult:
        """Runs a command and writes what it writes, as it comes."""
        deadline = Deadline(timeout)
        params = self._exec_params(deadline, command, working_dir, user, env)
        output = Output({"exec_stream.stdout": stdout, "exec_stream.stderr": stderr})
        result = self._request("exec_stream", params, output.take, deadline)
        output.finish()
        return ExecStreamResult(*wire.exec_end("exec_stream", result))

    def exec_pipe(
        self,
        command: Command,
        stdin: Reader | None = None,
        stdout: Writer | None = None,
        stderr: Writer | None = None,
        working_dir: str = "",
        timeout: float | None = None,
        user: str = "",
        *,
        env: Mapping[str, str] | None = None,
    ) -> ExecPipeResult:
        """Runs a command on pipes: `stdin` is its input, to the end."""
        deadline = Deadline(timeout)
        params = self._exec_params(deadline, command, working_dir, user, env)
        output = Output({"exec_pipe.stdout": stdout, "exec_pipe.stderr": stderr})
        result = self._interact("exec_pipe", params, output, stdin, None, deadline)
        return ExecPipeResult(*wire.exec_end("exec_pipe", result))

    def exec_interactive(
        self,
        command: Command,
        stdin: Reader | None = None,
        stdout: Writer | None = None,
        working_dir: str = "",
        rows: int = 24,
        cols: int = 80,
        resize: Iterable[tuple[int, int]] | None = None,
        timeout: float | None = None,
        user: str = "",
        *,
        env: Mapping[str, str] | None = None,
    ) -> ExecInteractiveResult:
        """Runs a command on a terminal of its own. `resize` gives (rows, cols) whenever the size changes."""
        deadline = Deadline(timeout)
        size = wire.terminal_size(rows, cols)
        params = self._exec_params(deadline, command, working_dir, user, env, **size)
        output = Output({"exec_tty.stdout": stdout})
        result = self._interact("exec_tty", params, output, stdin, resize, deadline)
        return ExecInteractiveResult(*wire.exec_end("exec_tty", result))

    def exec_detached(
        self,
        command: Command,
        working_dir: str = "",
        timeout: float | None = None,
        *,
        user: str = "",
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Starts a command that runs on by itself, with what it starts, until it ends or the sandbox does. What it
        writes goes to the sandbox's log."""
        deadline = Deadline(timeout)
        params = self._exec_params(deadline, command, working_dir, user, env, detached=True)
        self._extend("exec_detached", deadline)
        return Process(self._request, wire.process_id(self._request("exec", params, deadline=deadline)))

    def processes(self, timeout: float | None = None) -> list[ProcessInfo]:
        """The detached commands, in the order they were started."""
        return wire.processes(self._request_extension("processes", "process_list", None, timeout))

    # Files

    def write_file(self, path: str, content: bytes | str, mode: int = 0o644, timeout: float | None = None) -> None:
        """Writes a file of the guest, as root; directories above it are made. `mode` is for a new file."""
        data = wire.content_bytes(content)
        self._decide("write", path, len(data), mode)
        data = self._mutate(path, data, mode)
        if len(data) > wire.WHOLE_FILE_BYTES:
            self._write_pieces(path, pieces(data), mode, timeout)
        else:
            self._request("write_file", wire.write_params(path, data, mode), deadline=Deadline(timeout))

    def read_file(self, path: str, timeout: float | None = None) -> bytes:
        """The content of a file of the guest, up to 16 MiB; `download` has no limit."""
        self._decide("read", path)
        return wire.file_content(self._request("read_file", {"path": path}, deadline=Deadline(timeout)))

    def list_files(self, path: str, timeout: float | None = None) -> list[FileInfo]:
        """The entries of a directory of the guest, by name."""
        self._decide("readdir", path)
        return wire.file_infos(self._request("list_files", {"path": path}, deadline=Deadline(timeout)))

    def upload(self, path: str, source: IO[bytes], mode: int = 0o644, timeout: float | None = None) -> int:
        """Writes a file of the guest from a binary stream of any length, in constant memory; gives the bytes
        written. `timeout` bounds each piece."""
        self._decide("write", path, 0, mode)
        replacement = self._mutate(path, b"", mode)
        return self._write_pieces(path, pieces(replacement) if replacement else fill(source), mode, timeout)

    def download(
        self,
        path: str,
        target: IO[bytes],
        offset: int = 0,
        length: int | None = None,
        timeout: float | None = None,
    ) -> int:
        """Writes a file of the guest, or `length` bytes of it from `offset` on, to a binary stream, in constant
        memory; gives the bytes written. `timeout` bounds each piece."""
        self._decide("read", path)
        end = None if length is None else offset + length
        at = offset
        while True:
            wanted = wire.CHUNK_BYTES if end is None else min(wire.CHUNK_BYTES, end - at)
            params: Params = {"path": path, "offset": at, "length": wanted}
            piece = wire.file_content(self._request_extension("download", "read_file", params, timeout))
            target.write(piece)
            at += len(piece)
            if len(piece) < wanted or at == end:
                return at - offset

    def stat(self, path: str, follow: bool = True, timeout: float | None = None) -> FileInfo:
        """A file of the guest; with `follow` a symbolic link stands for its target."""
        self._decide("stat", path)
        params: Params = {"path": path, "follow": follow}
        return wire.file_info(self._request_extension("stat", "stat", params, timeout))

    def mkdir(self, path: str, mode: int = 0o755, parents: bool = False, timeout: float | None = None) -> None:
        """Makes a directory; with `parents` those above it too, and one that is there is accepted."""
        self._decide("mkdir", path, 0, mode)
        params: Params = {"path": path, "mode": mode, "parents": parents}
        self._request_extension("mkdir", "mkdir", params, timeout)

    def remove_file(self, path: str, recursive: bool = False, timeout: float | None = None) -> None:
        """Removes a file or an empty directory; with `recursive` a directory and all in it."""
        self._decide("remove_all" if recursive else "remove", path)
        params: Params = {"path": path, "recursive": recursive}
        self._request_extension("remove_file", "remove", params, timeout)

    def rename(self, path: str, new_path: str, timeout: float | None = None) -> None:
        """Renames a file or directory, replacing as rename(2) does."""
        self._decide("rename", path)
        self._request_extension("rename", "rename", {"from": path, "to": new_path}, timeout)

    def watch(self, path: str, recursive: bool = False, timeout: float | None = None) -> Watch:
        """Tells changes of a file, or below a directory, from now on. `timeout` bounds the start."""
        deadline = Deadline(timeout)
        self._extend("watch", deadline)
        return Watch(self._running(), {"path": path, "recursive": recursive}, deadline)

    # Log

    def log(self, timeout: float | None = None) -> str:
        """The sandbox's log so far."""
        result = self._request("log", deadline=Deadline(timeout))
        return wire.log_text(result)

    def log_stream(self, stdout: Writer | None = None, timeout: float | None = None) -> None:
        """Writes the sandbox's log as it comes, until the sandbox ends or `timeout` raises TimeoutError."""
        output = Output({"log_stream.data": stdout})
        self._request("log_stream", None, output.take, Deadline(timeout))
        output.finish()

    # Ports

    def port_forward(self, *specs: str) -> list[PortForwardBinding]:
        """Forwards host ports on 127.0.0.1 into the guest, each `[LOCAL_PORT:]REMOTE_PORT`, in place of all earlier
        ones."""
        return self.port_forward_with_addresses(None, *specs)

    def port_forward_with_addresses(self, addresses: list[str] | None, *specs: str) -> list[PortForwardBinding]:
        """Forwards host ports on these addresses into the guest, in place of all earlier ones."""
        return self._port_forward(addresses, wire.port_forwards(specs))

    # Volumes

    def volume_create(self, name: str, size_mb: int = 10240) -> VolumeInfo:
        """Makes a named volume: an ext4 image that outlives sandboxes."""
        name = volumes.volume_name(name)
        output = self._command(volumes.create_command(name, size_mb))
        return volumes.created(output, name, size_mb)

    def volume_list(self) -> list[VolumeInfo]:
        """The named volumes."""
        return volumes.listed(self._command(["volume", "ls", "--json"]))

    def volume_remove(self, name: str) -> None:
        """Removes a named volume and all in it."""
        self._command(["volume", "rm", volumes.volume_name(name)])

    # Requests

    def _running(self) -> Transport:
        transport = self._transport
        if transport is None or self._closed:
            raise MatchlockError(NOT_RUNNING)
        self._origin.check()
        return transport

    def _check_process(self) -> None:
        """Raises MatchlockError in a child of the process that started the server."""
        if self._transport is not None:
            self._origin.check()

    def _request(
        self,
        method: str,
        params: Params | None = None,
        on_notification: OnNotification | None = None,
        deadline: Deadline | None = None,
    ) -> Any:
        return self._running().request(method, params, on_notification, deadline)

    def _request_extension(self, feature: str, method: str, params: Params | None, timeout: float | None) -> Any:
        deadline = Deadline(timeout)
        self._extend(feature, deadline)
        return self._request(method, params, deadline=deadline)

    def _extend(self, feature: str, deadline: Deadline) -> None:
        """Makes sure that the server has what the releases up to 0.2 do not: they would ignore what they do not
        know, and do something else."""
        if not self._is_extended(deadline):
            raise MatchlockError(f"{feature}: the matchlock program is too old for it")

    def _is_extended(self, deadline: Deadline) -> bool:
        if self._extended is None:
            try:
                self._request("hello", deadline=deadline)
                self._extended = True
            except RPCError as error:
                if error.code != RPCError.METHOD_NOT_FOUND:
                    raise
                self._extended = False
        return self._extended

    def _exec_params(
        self,
        deadline: Deadline,
        command: Command,
        working_dir: str,
        user: str,
        env: Mapping[str, str] | None,
        **more: Any,
    ) -> Params:
        params = wire.exec_params(command, working_dir, user, env, **more)
        if wire.needs_more_than_old(params):
            self._extend("env and argument lists", deadline)
        return params

    def _interact(
        self,
        method: str,
        params: Params,
        output: Output,
        stdin: Reader | None,
        resize: Iterable[tuple[int, int]] | None,
        deadline: Deadline,
    ) -> Any:
        post = self._running().post
        acks = method == "exec_pipe" and stdin is not None and self._is_extended(deadline)
        if acks:
            params = {**params, "stdin_ack": True}
        source = Input(post, method, stdin, acks)
        sides: list[Side] = [source]
        if resize is not None:
            sides.append(Resizes(post, method, resize))

        def take(notification: Notification) -> None:
            if notification.method == f"{method}.ready":
                for side in sides:
                    side.start(notification.request_id() or 0)
            elif notification.method == f"{method}.stdin_ack":
                source.taken(wire.taken(notification.params))
            else:
                output.take(notification)

        try:
            result = self._request(method, params, take, deadline)
        finally:
            for side in sides:
                side.stop()
        output.finish()
        for side in sides:
            side.check()
        return result

    def _write_pieces(self, path: str, content: Iterable[bytes], mode: int, timeout: float | None) -> int:
        self._extend("upload", Deadline(timeout))
        offset = 0
        for piece in content:
            # The first piece replaces what the file held.
            more: Params = {"offset": offset} if offset else {}
            params = wire.write_params(path, piece, mode, **more)
            self._request("write_file", params, deadline=Deadline(timeout))
            offset += len(piece)
        return offset

    def _port_forward(self, addresses: list[str] | None, forwards: list[PortForward]) -> list[PortForwardBinding]:
        if not forwards:
            return []
        params = wire.port_forward_params(addresses, forwards)
        return wire.bindings(self._request("port_forward", params))

    def _command(self, arguments: list[str]) -> str:
        command = [self._config.binary_path, *arguments]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode != 0:
            raise CommandError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout

    # Hooks

    def _on_event(self, params: Params) -> None:
        event = vfs_hooks.file_event(params)
        if event is not None:
            self._events.run(self, event)

    def _decide(self, op: str, path: str, size: int = 0, mode: int = 0) -> None:
        self._check_process()
        deciders = self._events.hooks().deciders(op, path)
        request = vfs_hooks.action_request(op, path, size, mode)
        for hook in deciders:
            vfs_hooks.check_decision(hook, request, hook.callback(request))

    def _mutate(self, path: str, content: bytes, mode: int) -> bytes:
        for hook in self._events.hooks().mutators(path):
            request = vfs_hooks.mutate_request(path, len(content), mode)
            changed = vfs_hooks.mutated(hook, hook.callback(request))
            content = content if changed is None else changed
        return content

    def _start_hook_server(self, callbacks: network_hooks.Callbacks) -> str:
        server = HookServer(callbacks)
        with self._lock:
            self._hook_server = server
        return server.path

    def _stop_hook_server(self) -> None:
        with self._lock:
            server, self._hook_server = self._hook_server, None
        if server is not None:
            server.stop()
