"""The asyncio client: the methods of `Client`, to be awaited.

Cancelling a call cancels its work in the sandbox. Not here: the steps of a call (`calls`), the process and its reader
(`aio_transport`), JSON members (`wire`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Mapping
from types import TracebackType
from typing import IO, Any, TypeVar, cast

from . import calls, forks, network_hooks, vfs_hooks, wire
from .aio_hooks import AsyncEventRunner, AsyncHookServer
from .aio_processes import AsyncProcess, AsyncWatch, StartingWatch
from .aio_streams import (
    AsyncOutput,
    AsyncReader,
    AsyncWriter,
    Sizes,
    Window,
    in_thread,
    send_input,
    send_sizes,
    settle,
)
from .aio_transport import AsyncTransport, OnNotification
from .builder import Sandbox
from .calls import Calls, Step, Steps
from .client import close_seconds
from .deadlines import Deadline
from .errors import CommandError, MatchlockError
from .messages import Notification, Params
from .options import Config, CreateOptions, MountConfig
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
from .sinks import to_bytes
from .transport import NOT_RUNNING
from .vfs_hooks import VFSHooks
from .wire import Command

T = TypeVar("T")


class AsyncClient:
    """A sandbox, driven through `matchlock rpc`, on one event loop. Methods, parameters and results are those of
    `Client`; hooks may be coroutine functions, and streams may be those of asyncio."""

    def __init__(self, config: Config | None = None) -> None:
        self._config = config or Config(binary_path=os.environ.get("MATCHLOCK_BIN", "matchlock"))
        self._origin = forks.Origin()
        self._transport: AsyncTransport | None = None
        self._starting = asyncio.Lock()
        self._closed = False
        self._events = AsyncEventRunner()
        self._calls = Calls(lambda: self._events.hooks, self._check_process)
        self._hook_server: AsyncHookServer | None = None

    async def __aenter__(self) -> AsyncClient:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def vm_id(self) -> str | None:
        """The sandbox's id, from `create` on."""
        return self._calls.vm_id

    # Life

    async def start(self) -> None:
        """Starts the server, if it has not been started."""
        self._check_process()
        if not self._origin.is_here():
            # The client was made before a fork and not started, so it may be used here.
            self._origin, self._starting = forks.Origin(), asyncio.Lock()
        async with self._starting:
            if self._transport is not None:
                return
            command = [self._config.binary_path, "rpc"]
            if self._config.use_sudo:
                command.insert(0, "sudo")
            self._transport = await AsyncTransport.start(command, self._on_event, self._stop_hook_server)

    async def close(self, timeout: float = 0) -> None:
        """Shuts the sandbox down and ends the server; after `timeout` seconds by force. 0 stands for 2 seconds. Does
        nothing before `start`, and in a child of the process that started the server."""
        limit = close_seconds(timeout)
        if not self._origin.is_here():
            return
        async with self._starting:
            if self._transport is None or self._closed:
                return
            self._closed = True
        self._events.hooks = VFSHooks()
        self._stop_hook_server()
        await self._transport.close(limit)

    async def remove(self) -> None:
        """Removes what is left of a closed sandbox: its record and its log."""
        await self._take(self._calls.remove())

    async def create(self, opts: CreateOptions | None = None) -> str:
        """Makes a sandbox and gives its id. A second one takes the place of the first."""
        options = opts or CreateOptions()
        steps = self._calls.create(options, self._set_hooks, self._start_hook_server, self._stop_hook_server)
        return await self._take(steps)

    async def launch(self, sandbox: Sandbox) -> str:
        """Makes a sandbox, starts the image's entrypoint in it, and gives the sandbox's id."""
        return await self.create(dataclasses.replace(sandbox.options(), launch_entrypoint=True))

    # Commands

    async def exec(
        self,
        command: Command,
        working_dir: str = "",
        timeout: float | None = None,
        *,
        user: str = "",
        env: Mapping[str, str] | None = None,
    ) -> ExecResult:
        """Runs a shell command, or a list of program and arguments, and returns its whole output."""
        return await self._take(self._calls.exec(timeout, command, working_dir, user, env))

    async def exec_stream(
        self,
        command: Command,
        stdout: AsyncWriter | None = None,
        stderr: AsyncWriter | None = None,
        working_dir: str = "",
        timeout: float | None = None,
        *,
        user: str = "",
        env: Mapping[str, str] | None = None,
    ) -> ExecStreamResult:
        """Runs a command and writes its output to the streams as it comes."""
        output = AsyncOutput({"exec_stream.stdout": stdout, "exec_stream.stderr": stderr})
        return await self._take(self._calls.exec_stream(timeout, command, working_dir, user, env, output))

    async def exec_pipe(
        self,
        command: Command,
        stdin: AsyncReader | None = None,
        stdout: AsyncWriter | None = None,
        stderr: AsyncWriter | None = None,
        working_dir: str = "",
        timeout: float | None = None,
        user: str = "",
        *,
        env: Mapping[str, str] | None = None,
    ) -> ExecPipeResult:
        """Runs a command on pipes: `stdin` is its input, to the end."""
        output = AsyncOutput({"exec_pipe.stdout": stdout, "exec_pipe.stderr": stderr})
        return await self._take(self._calls.exec_pipe(timeout, command, working_dir, user, env, output, stdin))

    async def exec_interactive(
        self,
        command: Command,
        stdin: AsyncReader | None = None,
        stdout: AsyncWriter | None = None,
        working_dir: str = "",
        rows: int = 24,
        cols: int = 80,
        resize: Sizes | None = None,
        timeout: float | None = None,
        user: str = "",
        *,
        env: Mapping[str, str] | None = None,
    ) -> ExecInteractiveResult:
        """Runs a command on a terminal of its own. `resize` yields (rows, cols) whenever the size changes."""
        output = AsyncOutput({"exec_tty.stdout": stdout})
        size = (rows, cols)
        steps = self._calls.exec_interactive(timeout, command, working_dir, user, env, output, stdin, size, resize)
        return await self._take(steps)

    async def exec_detached(
        self,
        command: Command,
        working_dir: str = "",
        timeout: float | None = None,
        *,
        user: str = "",
        env: Mapping[str, str] | None = None,
    ) -> AsyncProcess:
        """Starts a command that runs on by itself, with its descendants, until it ends or the sandbox does. Its output
        goes to the sandbox's log."""
        id = await self._take(self._calls.exec_detached(timeout, command, working_dir, user, env))
        return AsyncProcess(self._request, id)

    async def processes(self, timeout: float | None = None) -> list[ProcessInfo]:
        """The detached commands, in the order of their starts."""
        return await self._take(self._calls.processes(timeout))

    # Files

    async def write_file(
        self, path: str, content: bytes | str, mode: int = 0o644, timeout: float | None = None
    ) -> None:
        """Writes a file of the guest, as root; directories above it are made. `mode` is for a new file."""
        await self._take(self._calls.write_file(path, content, mode, timeout))

    async def read_file(self, path: str, timeout: float | None = None) -> bytes:
        """The content of a file of the guest, up to 16 MiB; `download` has no limit."""
        return await self._take(self._calls.read_file(path, timeout))

    async def list_files(self, path: str, timeout: float | None = None) -> list[FileInfo]:
        """The entries of a directory of the guest, sorted by name."""
        return await self._take(self._calls.list_files(path, timeout))

    async def upload(self, path: str, source: IO[bytes], mode: int = 0o644, timeout: float | None = None) -> int:
        """Writes a file of the guest from a binary stream of any length, in constant memory; gives the bytes
        written. `timeout` bounds each piece."""
        return await self._take(self._calls.upload(path, source, mode, timeout))

    async def download(
        self,
        path: str,
        target: AsyncWriter,
        offset: int = 0,
        length: int | None = None,
        timeout: float | None = None,
    ) -> int:
        """Writes a file of the guest, or `length` bytes of it from `offset` on, to a binary stream, in constant
        memory; gives the bytes written. `timeout` bounds each piece."""
        return await self._take(self._calls.download(path, target, offset, length, timeout))

    async def stat(self, path: str, follow: bool = True, timeout: float | None = None) -> FileInfo:
        """A file of the guest; with `follow` a symbolic link is followed."""
        return await self._take(self._calls.stat(path, follow, timeout))

    async def mkdir(self, path: str, mode: int = 0o755, parents: bool = False, timeout: float | None = None) -> None:
        """Makes a directory; with `parents` those above it as well, and one that exists is accepted."""
        await self._take(self._calls.mkdir(path, mode, parents, timeout))

    async def remove_file(self, path: str, recursive: bool = False, timeout: float | None = None) -> None:
        """Removes a file or an empty directory; with `recursive` a directory with its content."""
        await self._take(self._calls.remove_file(path, recursive, timeout))

    async def rename(self, path: str, new_path: str, timeout: float | None = None) -> None:
        """Renames a file or directory, replacing as rename(2) does."""
        await self._take(self._calls.rename(path, new_path, timeout))

    def watch(self, path: str, recursive: bool = False, timeout: float | None = None) -> StartingWatch:
        """Tells changes of a file, or below a directory, from its start on: `watch = await client.watch(…)`, or
        `async with client.watch(…) as watch`. `timeout` bounds the start."""
        return StartingWatch(self._watch({"path": path, "recursive": recursive}, timeout))

    # Log

    async def log(self, timeout: float | None = None) -> str:
        """The sandbox's log so far."""
        return await self._take(self._calls.log(timeout))

    async def log_stream(self, stdout: AsyncWriter | None = None, timeout: float | None = None) -> None:
        """Writes the sandbox's log as it comes, until the sandbox ends or `timeout` raises TimeoutError."""
        await self._take(self._calls.log_stream(AsyncOutput({"log_stream.data": stdout}), timeout))

    # Ports

    async def port_forward(self, *specs: str) -> list[PortForwardBinding]:
        """Forwards host ports on 127.0.0.1 into the guest, each `[LOCAL_PORT:]REMOTE_PORT`, in place of all earlier
        ones."""
        return await self.port_forward_with_addresses(None, *specs)

    async def port_forward_with_addresses(self, addresses: list[str] | None, *specs: str) -> list[PortForwardBinding]:
        """Forwards host ports on these addresses into the guest, in place of all earlier ones."""
        return await self._take(self._calls.port_forward(addresses, wire.port_forwards(specs)))

    # Allow list

    async def allow_list_add(self, *hosts: str) -> AllowList:
        """Lets the guest reach more hosts; needs a sandbox with an allow list."""
        return await self._take(self._calls.allow_list_add(hosts))

    async def allow_list_delete(self, *hosts: str) -> AllowList:
        """Lets the guest reach fewer hosts; open connections to them are cut. An emptied list allows none."""
        return await self._take(self._calls.allow_list_delete(hosts))

    # Mounts

    async def add_mount(self, guest_path: str, mount: MountConfig | None = None, timeout: float | None = None) -> None:
        """Mounts a folder or file of the host, or a folder in memory, while the sandbox runs. It is there when this
        returns."""
        await self._take(self._calls.add_mount(guest_path, mount or MountConfig(), timeout))

    async def remove_mount(self, guest_path: str, force: bool = False, timeout: float | None = None) -> None:
        """Takes away a mount that was added. One in use stays without `force`; what is open there fails with it."""
        await self._take(self._calls.remove_mount(guest_path, force, timeout))

    async def mounts(self, timeout: float | None = None) -> list[MountInfo]:
        """The mounts, those from the start first."""
        return await self._take(self._calls.mounts(timeout))

    # Volumes

    async def volume_create(self, name: str, size_mb: int = 10240) -> VolumeInfo:
        """Makes a named volume: an ext4 image that outlives sandboxes."""
        return await self._take(self._calls.volume_create(name, size_mb))

    async def volume_list(self) -> list[VolumeInfo]:
        """The named volumes."""
        return await self._take(self._calls.volume_list())

    async def volume_remove(self, name: str) -> None:
        """Removes a named volume and its content."""
        await self._take(self._calls.volume_remove(name))

    # Requests

    def _running(self) -> AsyncTransport:
        transport = self._transport
        if transport is None or self._closed:
            raise MatchlockError(NOT_RUNNING)
        self._origin.check()
        return transport

    def _check_process(self) -> None:
        """Raises MatchlockError in a child of the process that started the server."""
        if self._transport is not None:
            self._origin.check()

    async def _request(
        self,
        method: str,
        params: Params | None = None,
        on_notification: OnNotification | None = None,
        deadline: Deadline | None = None,
    ) -> Any:
        return await self._running().request(method, params, on_notification, deadline)

    async def _take(self, steps: Steps[T]) -> T:
        """Takes the steps of a call, one after another."""
        try:
            step = next(steps)
            while True:
                try:
                    given = await self._step(step)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(given)
        except StopIteration as end:
            return cast(T, end.value)

    async def _step(self, step: Step) -> Any:
        match step:
            case calls.Request():
                take = None if step.output is None else step.output.take
                result = await self._request(step.method, step.params, take, step.deadline)
                if step.output is not None:
                    await step.output.finish()
                return result
            case calls.Interact():
                return await self._interact(step)
            case calls.Invoke():
                return await settle(step.function(*step.arguments))
            case calls.Read():
                return to_bytes(await _read_piece(step.stream))
            case calls.Write():
                await settle(step.stream.write(step.piece))
                if callable(getattr(step.stream, "drain", None)):
                    await settle(step.stream.drain())
                return None
            case calls.Run():
                return await self._command(step.arguments)

    async def _interact(self, step: calls.Interact) -> Any:
        post, method = self._running().post, step.method
        window = Window(step.acks)
        sides: list[asyncio.Task[None]] = []
        failures: list[Exception] = []

        async def take(notification: Notification) -> None:
            if notification.method == f"{method}.stdin_ack":
                window.taken(wire.taken(notification.params))
                return
            if notification.method != f"{method}.ready":
                await step.output.take(notification)
                return
            id = notification.request_id() or 0
            sides.append(asyncio.create_task(send_input(post, method, id, step.stdin, window, failures)))
            if step.resize is not None:
                sides.append(asyncio.create_task(send_sizes(post, method, id, step.resize, failures)))

        try:
            result = await self._request(method, step.params, take, step.deadline)
        finally:
            for side in sides:
                side.cancel()
        await step.output.finish()
        for failure in failures:
            raise failure
        return result

    async def _watch(self, params: Params, timeout: float | None) -> AsyncWatch:
        deadline = Deadline(timeout)
        await self._take(self._calls.extend("watch", deadline))
        return await AsyncWatch.start(self._running(), params, deadline)

    async def _command(self, arguments: list[str]) -> str:
        command = [self._config.binary_path, *arguments]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
        stdout, stderr = await process.communicate()
        output = stdout.decode("utf-8", errors="replace")
        if process.returncode != 0:
            said = stderr.decode("utf-8", errors="replace")
            raise CommandError(process.returncode or 0, command, output, said)
        return output

    # Hooks

    def _on_event(self, params: Params) -> None:
        event = vfs_hooks.file_event(params)
        if event is not None:
            self._events.run(self, event)

    def _set_hooks(self, hooks: VFSHooks) -> None:
        self._events.hooks = hooks

    async def _start_hook_server(self, callbacks: network_hooks.Callbacks) -> str:
        self._hook_server = await AsyncHookServer.start(callbacks)
        return self._hook_server.path

    def _stop_hook_server(self) -> None:
        server, self._hook_server = self._hook_server, None
        if server is not None:
            server.stop()


async def _read_piece(source: Any) -> Any:
    if asyncio.iscoroutinefunction(source.read):
        return await source.read(wire.CHUNK_BYTES)
    return await in_thread(source.read, wire.CHUNK_BYTES)
