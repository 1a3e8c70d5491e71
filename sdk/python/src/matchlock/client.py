"""The client: one server process, one sandbox at a time, any number of threads.

Threads take the steps of a call. Not here: the steps themselves (`calls`), the process and its reader (`transport`),
JSON members (`wire`), the choice of hooks (`vfs_hooks`, `network_hooks`).
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import IO, Any, TypeVar, cast

from . import calls, forks, network_hooks, vfs_hooks, wire
from .builder import Sandbox
from .calls import Calls, Step, Steps
from .deadlines import LONGEST_SECONDS, Deadline, seconds
from .errors import CommandError, MatchlockError
from .messages import Notification, Params
from .network_hooks import HookServer
from .options import Config, CreateOptions, MountConfig
from .processes import Process, Watch
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
from .sinks import Reader, Writer, to_bytes
from .streams import Input, Output, Resizes, Side
from .transport import NOT_RUNNING, OnNotification, Transport
from .vfs_hooks import EventRunner, VFSHooks
from .wire import Command

T = TypeVar("T")

CLOSE_SECONDS = 2.0
"""How long `close` waits by default."""


def close_seconds(timeout: float | None) -> float:
    """How long `close` waits. Raises ValueError and TypeError for values that are no time."""
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
        self._events = EventRunner()
        self._calls = Calls(self._events.hooks, self._check_process)
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
        return self._calls.vm_id

    # Life

    def start(self) -> None:
        """Starts the server, if it has not been started."""
        self._check_process()
        if not self._origin.is_here():
            # The client was made before a fork and not started, so it may be used here; a thread of the parent may hold
            # its lock.
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
        self._take(self._calls.remove())

    def create(self, opts: CreateOptions | None = None) -> str:
        """Makes a sandbox and gives its id. A second one takes the place of the first."""
        options = opts or CreateOptions()
        steps = self._calls.create(options, self._events.set, self._start_hook_server, self._stop_hook_server)
        return self._take(steps)

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
        """Runs a shell command, or a list of program and arguments, and returns its whole output."""
        return self._take(self._calls.exec(timeout, command, working_dir, user, env))

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
        """Runs a command and writes its output to the streams as it comes."""
        output = Output({"exec_stream.stdout": stdout, "exec_stream.stderr": stderr})
        return self._take(self._calls.exec_stream(timeout, command, working_dir, user, env, output))

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
        output = Output({"exec_pipe.stdout": stdout, "exec_pipe.stderr": stderr})
        return self._take(self._calls.exec_pipe(timeout, command, working_dir, user, env, output, stdin))

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
        """Runs a command on a terminal of its own. `resize` yields (rows, cols) whenever the size changes."""
        output = Output({"exec_tty.stdout": stdout})
        size = (rows, cols)
        steps = self._calls.exec_interactive(timeout, command, working_dir, user, env, output, stdin, size, resize)
        return self._take(steps)

    def exec_detached(
        self,
        command: Command,
        working_dir: str = "",
        timeout: float | None = None,
        *,
        user: str = "",
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Starts a command that runs on by itself, with its descendants, until it ends or the sandbox does. Its output
        goes to the sandbox's log."""
        id = self._take(self._calls.exec_detached(timeout, command, working_dir, user, env))
        return Process(self._request, id)

    def processes(self, timeout: float | None = None) -> list[ProcessInfo]:
        """The detached commands, in the order of their starts."""
        return self._take(self._calls.processes(timeout))

    # Files

    def write_file(self, path: str, content: bytes | str, mode: int = 0o644, timeout: float | None = None) -> None:
        """Writes a file of the guest, as root; directories above it are made. `mode` is for a new file."""
        self._take(self._calls.write_file(path, content, mode, timeout))

    def read_file(self, path: str, timeout: float | None = None) -> bytes:
        """The content of a file of the guest, up to 16 MiB; `download` has no limit."""
        return self._take(self._calls.read_file(path, timeout))

    def list_files(self, path: str, timeout: float | None = None) -> list[FileInfo]:
        """The entries of a directory of the guest, sorted by name."""
        return self._take(self._calls.list_files(path, timeout))

    def upload(self, path: str, source: IO[bytes], mode: int = 0o644, timeout: float | None = None) -> int:
        """Writes a file of the guest from a binary stream of any length, in constant memory; gives the bytes
        written. `timeout` bounds each piece."""
        return self._take(self._calls.upload(path, source, mode, timeout))

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
        return self._take(self._calls.download(path, target, offset, length, timeout))

    def stat(self, path: str, follow: bool = True, timeout: float | None = None) -> FileInfo:
        """A file of the guest; with `follow` a symbolic link is followed."""
        return self._take(self._calls.stat(path, follow, timeout))

    def mkdir(self, path: str, mode: int = 0o755, parents: bool = False, timeout: float | None = None) -> None:
        """Makes a directory; with `parents` those above it as well, and one that exists is accepted."""
        self._take(self._calls.mkdir(path, mode, parents, timeout))

    def remove_file(self, path: str, recursive: bool = False, timeout: float | None = None) -> None:
        """Removes a file or an empty directory; with `recursive` a directory with its content."""
        self._take(self._calls.remove_file(path, recursive, timeout))

    def rename(self, path: str, new_path: str, timeout: float | None = None) -> None:
        """Renames a file or directory, replacing as rename(2) does."""
        self._take(self._calls.rename(path, new_path, timeout))

    def watch(self, path: str, recursive: bool = False, timeout: float | None = None) -> Watch:
        """Reports changes of a file, or below a directory, from now on. `timeout` bounds the start."""
        deadline = Deadline(timeout)
        self._take(self._calls.extend("watch", deadline))
        return Watch(self._running(), {"path": path, "recursive": recursive}, deadline)

    # Log

    def log(self, timeout: float | None = None) -> str:
        """The sandbox's log so far."""
        return self._take(self._calls.log(timeout))

    def log_stream(self, stdout: Writer | None = None, timeout: float | None = None) -> None:
        """Writes the sandbox's log as it comes, until the sandbox ends or `timeout` raises TimeoutError."""
        self._take(self._calls.log_stream(Output({"log_stream.data": stdout}), timeout))

    # Ports

    def port_forward(self, *specs: str) -> list[PortForwardBinding]:
        """Forwards host ports on 127.0.0.1 into the guest, each `[LOCAL_PORT:]REMOTE_PORT`, in place of all earlier
        ones."""
        return self.port_forward_with_addresses(None, *specs)

    def port_forward_with_addresses(self, addresses: list[str] | None, *specs: str) -> list[PortForwardBinding]:
        """Forwards host ports on these addresses into the guest, in place of all earlier ones."""
        return self._take(self._calls.port_forward(addresses, wire.port_forwards(specs)))

    # Allow list

    def allow_list_add(self, *hosts: str) -> AllowList:
        """Lets the guest reach more hosts; needs a sandbox with an allow list."""
        return self._take(self._calls.allow_list_add(hosts))

    def allow_list_delete(self, *hosts: str) -> AllowList:
        """Lets the guest reach fewer hosts; open connections to them are cut. An emptied list allows none."""
        return self._take(self._calls.allow_list_delete(hosts))

    # Mounts

    def add_mount(self, guest_path: str, mount: MountConfig | None = None, timeout: float | None = None) -> None:
        """Mounts a folder or file of the host, or a folder in memory, while the sandbox runs. It is there when this
        returns."""
        self._take(self._calls.add_mount(guest_path, mount or MountConfig(), timeout))

    def remove_mount(self, guest_path: str, force: bool = False, timeout: float | None = None) -> None:
        """Takes away a mount that was added. One in use stays without `force`; what is open there fails with it."""
        self._take(self._calls.remove_mount(guest_path, force, timeout))

    def mounts(self, timeout: float | None = None) -> list[MountInfo]:
        """The mounts, those from the start first."""
        return self._take(self._calls.mounts(timeout))

    # Volumes

    def volume_create(self, name: str, size_mb: int = 10240) -> VolumeInfo:
        """Makes a named volume: an ext4 image that outlives sandboxes."""
        return self._take(self._calls.volume_create(name, size_mb))

    def volume_list(self) -> list[VolumeInfo]:
        """The named volumes."""
        return self._take(self._calls.volume_list())

    def volume_remove(self, name: str) -> None:
        """Removes a named volume and its content."""
        self._take(self._calls.volume_remove(name))

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

    def _take(self, steps: Steps[T]) -> T:
        """Takes the steps of a call, one after another."""
        try:
            step = next(steps)
            while True:
                try:
                    given = self._step(step)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(given)
        except StopIteration as end:
            return cast(T, end.value)

    def _step(self, step: Step) -> Any:
        match step:
            case calls.Request():
                take = None if step.output is None else step.output.take
                result = self._request(step.method, step.params, take, step.deadline)
                if step.output is not None:
                    step.output.finish()
                return result
            case calls.Interact():
                return self._interact(step)
            case calls.Invoke():
                return step.function(*step.arguments)
            case calls.Read():
                return to_bytes(step.stream.read(wire.CHUNK_BYTES))
            case calls.Write():
                return step.stream.write(step.piece)
            case calls.Run():
                return self._command(step.arguments)

    def _interact(self, step: calls.Interact) -> Any:
        post, method = self._running().post, step.method
        source = Input(post, method, step.stdin, step.acks)
        sides: list[Side] = [source]
        if step.resize is not None:
            sides.append(Resizes(post, method, step.resize))

        def take(notification: Notification) -> None:
            if notification.method == f"{method}.ready":
                for side in sides:
                    side.start(notification.request_id() or 0)
            elif notification.method == f"{method}.stdin_ack":
                source.taken(wire.taken(notification.params))
            else:
                step.output.take(notification)

        try:
            result = self._request(method, step.params, take, step.deadline)
        finally:
            for side in sides:
                side.stop()
        step.output.finish()
        for side in sides:
            side.check()
        return result

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
