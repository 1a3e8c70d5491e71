"""The asyncio client: the methods of `Client`, to be awaited.

Cancelling a call cancels what it does in the sandbox. Not here: the process and its reader (`aio_transport`), JSON
members (`wire`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from types import TracebackType
from typing import IO, Any

from . import forks, network_hooks, vfs_hooks, volumes, wire
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
from .client import close_seconds
from .deadlines import Deadline
from .errors import CommandError, MatchlockError, RPCError
from .messages import Notification, Params
from .options import Config, CreateOptions, PortForward
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
from .sinks import to_bytes
from .streams import pieces
from .transport import NOT_RUNNING
from .vfs_hooks import VFSHooks
from .wire import Command


class AsyncClient:
    """A sandbox, driven through `matchlock rpc`, on one event loop. Methods, parameters and results are those of
    `Client`; hooks may be coroutine functions, and streams may be those of asyncio."""

    def __init__(self, config: Config | None = None) -> None:
        self._config = config or Config(binary_path=os.environ.get("MATCHLOCK_BIN", "matchlock"))
        self._origin = forks.Origin()
        self._transport: AsyncTransport | None = None
        self._starting = asyncio.Lock()
        self._closed = False
        self._vm_id: str | None = None
        self._extended: bool | None = None
        self._events = AsyncEventRunner()
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
        return self._vm_id

    # Life

    async def start(self) -> None:
        """Starts the server, if it has not been started."""
        self._check_process()
        if not self._origin.is_here():
            # It was made before a fork and not started, so it may be used here.
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
        if self._vm_id:
            await self._command(["rm", self._vm_id])

    async def create(self, opts: CreateOptions | None = None) -> str:
        """Makes a sandbox and gives its id. A second one takes the place of the first."""
        self._check_process()
        options = opts or CreateOptions()
        wire.check_options(options)
        hooks = vfs_hooks.compile_hooks(options.vfs_interception)
        interception, callbacks = network_hooks.compile_hooks(options.network_interception)
        self._stop_hook_server()
        self._events.hooks = VFSHooks()
        try:
            if callbacks and interception is not None:
                self._hook_server = await AsyncHookServer.start(callbacks)
                interception["callback_socket"] = self._hook_server.path
            params = wire.create_params(options, hooks.wire, interception)
            vm_id = wire.created_id(await self._request("create", params))
        except BaseException:
            self._stop_hook_server()
            raise
        self._vm_id = vm_id
        self._events.hooks = hooks
        await self._port_forward(options.port_forward_addresses, options.port_forwards)
        return vm_id

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
        """Runs a shell command, or a list of program and arguments, and gives all it wrote."""
        deadline = Deadline(timeout)
        params = await self._exec_params(deadline, command, working_dir, user, env)
        return wire.exec_result(await self._request("exec", params, deadline=deadline))

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
        """Runs a command and writes what it writes, as it comes."""
        deadline = Deadline(timeout)
        params = await self._exec_params(deadline, command, working_dir, user, env)
        output = AsyncOutput({"exec_stream.stdout": stdout, "exec_stream.stderr": stderr})
        result = await self._request("exec_stream", params, output.take, deadline)
        await output.finish()
        return ExecStreamResult(*wire.exec_end("exec_stream", result))

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
        deadline = Deadline(timeout)
        params = await self._exec_params(deadline, command, working_dir, user, env)
        output = AsyncOutput({"exec_pipe.stdout": stdout, "exec_pipe.stderr": stderr})
        result = await self._interact("exec_pipe", params, output, stdin, None, deadline)
        return ExecPipeResult(*wire.exec_end("exec_pipe", result))

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
        """Runs a command on a terminal of its own. `resize` gives (rows, cols) whenever the size changes."""
        deadline = Deadline(timeout)
        size = wire.terminal_size(rows, cols)
        params = await self._exec_params(deadline, command, working_dir, user, env, **size)
        output = AsyncOutput({"exec_tty.stdout": stdout})
        result = await self._interact("exec_tty", params, output, stdin, resize, deadline)
        return ExecInteractiveResult(*wire.exec_end("exec_tty", result))

    async def exec_detached(
        self,
        command: Command,
        working_dir: str = "",
        timeout: float | None = None,
        *,
        user: str = "",
        env: Mapping[str, str] | None = None,
    ) -> AsyncProcess:
        """Starts a command that runs on by itself, with what it starts, until it ends or the sandbox does. What it
        writes goes to the sandbox's log."""
        deadline = Deadline(timeout)
        params = await self._exec_params(deadline, command, working_dir, user, env, detached=True)
        await self._extend("exec_detached", deadline)
        return AsyncProcess(self._request, wire.process_id(await self._request("exec", params, deadline=deadline)))

    async def processes(self, timeout: float | None = None) -> list[ProcessInfo]:
        """The detached commands, in the order they were started."""
        return wire.processes(await self._request_extension("processes", "process_list", None, timeout))

    # Files

    async def write_file(
        self, path: str, content: bytes | str, mode: int = 0o644, timeout: float | None = None
    ) -> None:
        """Writes a file of the guest, as root; directories above it are made. `mode` is for a new file."""
        data = wire.content_bytes(content)
        await self._decide("write", path, len(data), mode)
        data = await self._mutate(path, data, mode)
        if len(data) > wire.WHOLE_FILE_BYTES:
            await self._write_pieces(path, _each(pieces(data)), mode, timeout)
        else:
            await self._request("write_file", wire.write_params(path, data, mode), deadline=Deadline(timeout))

    async def read_file(self, path: str, timeout: float | None = None) -> bytes:
        """The content of a file of the guest, up to 16 MiB; `download` has no limit."""
        await self._decide("read", path)
        return wire.file_content(await self._request("read_file", {"path": path}, deadline=Deadline(timeout)))

    async def list_files(self, path: str, timeout: float | None = None) -> list[FileInfo]:
        """The entries of a directory of the guest, by name."""
        await self._decide("readdir", path)
        return wire.file_infos(await self._request("list_files", {"path": path}, deadline=Deadline(timeout)))

    async def upload(self, path: str, source: IO[bytes], mode: int = 0o644, timeout: float | None = None) -> int:
        """Writes a file of the guest from a binary stream of any length, in constant memory; gives the bytes
        written. `timeout` bounds each piece."""
        await self._decide("write", path, 0, mode)
        replacement = await self._mutate(path, b"", mode)
        content = _each(pieces(replacement)) if replacement else _fill(source)
        return await self._write_pieces(path, content, mode, timeout)

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
        await self._decide("read", path)
        stream: Any = target
        end = None if length is None else offset + length
        at = offset
        while True:
            wanted = wire.CHUNK_BYTES if end is None else min(wire.CHUNK_BYTES, end - at)
            params: Params = {"path": path, "offset": at, "length": wanted}
            piece = wire.file_content(await self._request_extension("download", "read_file", params, timeout))
            await settle(stream.write(piece))
            if callable(getattr(stream, "drain", None)):
                await settle(stream.drain())
            at += len(piece)
            if len(piece) < wanted or at == end:
                return at - offset

    async def stat(self, path: str, follow: bool = True, timeout: float | None = None) -> FileInfo:
        """A file of the guest; with `follow` a symbolic link stands for its target."""
        await self._decide("stat", path)
        params: Params = {"path": path, "follow": follow}
        return wire.file_info(await self._request_extension("stat", "stat", params, timeout))

    async def mkdir(self, path: str, mode: int = 0o755, parents: bool = False, timeout: float | None = None) -> None:
        """Makes a directory; with `parents` those above it too, and one that is there is accepted."""
        await self._decide("mkdir", path, 0, mode)
        params: Params = {"path": path, "mode": mode, "parents": parents}
        await self._request_extension("mkdir", "mkdir", params, timeout)

    async def remove_file(self, path: str, recursive: bool = False, timeout: float | None = None) -> None:
        """Removes a file or an empty directory; with `recursive` a directory and all in it."""
        await self._decide("remove_all" if recursive else "remove", path)
        params: Params = {"path": path, "recursive": recursive}
        await self._request_extension("remove_file", "remove", params, timeout)

    async def rename(self, path: str, new_path: str, timeout: float | None = None) -> None:
        """Renames a file or directory, replacing as rename(2) does."""
        await self._decide("rename", path)
        await self._request_extension("rename", "rename", {"from": path, "to": new_path}, timeout)

    def watch(self, path: str, recursive: bool = False, timeout: float | None = None) -> StartingWatch:
        """Tells changes of a file, or below a directory, from its start on: `watch = await client.watch(…)`, or
        `async with client.watch(…) as watch`. `timeout` bounds the start."""
        return StartingWatch(self._watch({"path": path, "recursive": recursive}, timeout))

    # Log

    async def log(self, timeout: float | None = None) -> str:
        """The sandbox's log so far."""
        return wire.log_text(await self._request("log", deadline=Deadline(timeout)))

    async def log_stream(self, stdout: AsyncWriter | None = None, timeout: float | None = None) -> None:
        """Writes the sandbox's log as it comes, until the sandbox ends or `timeout` raises TimeoutError."""
        output = AsyncOutput({"log_stream.data": stdout})
        await self._request("log_stream", None, output.take, Deadline(timeout))
        await output.finish()

    # Ports

    async def port_forward(self, *specs: str) -> list[PortForwardBinding]:
        """Forwards host ports on 127.0.0.1 into the guest, each `[LOCAL_PORT:]REMOTE_PORT`, in place of all earlier
        ones."""
        return await self.port_forward_with_addresses(None, *specs)

    async def port_forward_with_addresses(self, addresses: list[str] | None, *specs: str) -> list[PortForwardBinding]:
        """Forwards host ports on these addresses into the guest, in place of all earlier ones."""
        return await self._port_forward(addresses, wire.port_forwards(specs))

    # Volumes

    async def volume_create(self, name: str, size_mb: int = 10240) -> VolumeInfo:
        """Makes a named volume: an ext4 image that outlives sandboxes."""
        name = volumes.volume_name(name)
        output = await self._command(volumes.create_command(name, size_mb))
        return volumes.created(output, name, size_mb)

    async def volume_list(self) -> list[VolumeInfo]:
        """The named volumes."""
        return volumes.listed(await self._command(["volume", "ls", "--json"]))

    async def volume_remove(self, name: str) -> None:
        """Removes a named volume and all in it."""
        await self._command(["volume", "rm", volumes.volume_name(name)])

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

    async def _request_extension(self, feature: str, method: str, params: Params | None, timeout: float | None) -> Any:
        deadline = Deadline(timeout)
        await self._extend(feature, deadline)
        return await self._request(method, params, deadline=deadline)

    async def _extend(self, feature: str, deadline: Deadline) -> None:
        """Makes sure that the server has what the releases up to 0.2 do not: they would ignore what they do not
        know, and do something else."""
        if not await self._is_extended(deadline):
            raise MatchlockError(f"{feature}: the matchlock program is too old for it")

    async def _is_extended(self, deadline: Deadline) -> bool:
        if self._extended is None:
            try:
                await self._request("hello", deadline=deadline)
                self._extended = True
            except RPCError as error:
                if error.code != RPCError.METHOD_NOT_FOUND:
                    raise
                self._extended = False
        return self._extended

    async def _exec_params(
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
            await self._extend("env and argument lists", deadline)
        return params

    async def _interact(
        self,
        method: str,
        params: Params,
        output: AsyncOutput,
        stdin: AsyncReader | None,
        resize: Sizes | None,
        deadline: Deadline,
    ) -> Any:
        post = self._running().post
        acks = method == "exec_pipe" and stdin is not None and await self._is_extended(deadline)
        if acks:
            params = {**params, "stdin_ack": True}
        window = Window(acks)
        sides: list[asyncio.Task[None]] = []
        failures: list[Exception] = []

        async def take(notification: Notification) -> None:
            if notification.method == f"{method}.stdin_ack":
                window.taken(wire.taken(notification.params))
                return
            if notification.method != f"{method}.ready":
                await output.take(notification)
                return
            id = notification.request_id() or 0
            sides.append(asyncio.create_task(send_input(post, method, id, stdin, window, failures)))
            if resize is not None:
                sides.append(asyncio.create_task(send_sizes(post, method, id, resize, failures)))

        try:
            result = await self._request(method, params, take, deadline)
        finally:
            for side in sides:
                side.cancel()
        await output.finish()
        for failure in failures:
            raise failure
        return result

    async def _watch(self, params: Params, timeout: float | None) -> AsyncWatch:
        deadline = Deadline(timeout)
        await self._extend("watch", deadline)
        return await AsyncWatch.start(self._running(), params, deadline)

    async def _write_pieces(self, path: str, content: AsyncIterator[bytes], mode: int, timeout: float | None) -> int:
        await self._extend("upload", Deadline(timeout))
        offset = 0
        async for piece in content:
            # The first piece replaces what the file held.
            more: Params = {"offset": offset} if offset else {}
            params = wire.write_params(path, piece, mode, **more)
            await self._request("write_file", params, deadline=Deadline(timeout))
            offset += len(piece)
        return offset

    async def _port_forward(self, addresses: list[str] | None, forwards: list[PortForward]) -> list[PortForwardBinding]:
        if not forwards:
            return []
        params = wire.port_forward_params(addresses, forwards)
        return wire.bindings(await self._request("port_forward", params))

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

    async def _decide(self, op: str, path: str, size: int = 0, mode: int = 0) -> None:
        self._check_process()
        deciders = self._events.hooks.deciders(op, path)
        request = vfs_hooks.action_request(op, path, size, mode)
        for hook in deciders:
            vfs_hooks.check_decision(hook, request, await settle(hook.callback(request)))

    async def _mutate(self, path: str, content: bytes, mode: int) -> bytes:
        for hook in self._events.hooks.mutators(path):
            request = vfs_hooks.mutate_request(path, len(content), mode)
            changed = vfs_hooks.mutated(hook, await settle(hook.callback(request)))
            content = content if changed is None else changed
        return content

    def _stop_hook_server(self) -> None:
        server, self._hook_server = self._hook_server, None
        if server is not None:
            server.stop()


async def _each(content: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in content:
        yield piece


async def _fill(source: Any) -> AsyncIterator[bytes]:
    """A stream in pieces of one request; at least one, which may be empty."""
    first = True
    while True:
        piece = to_bytes(await _read_piece(source))
        if not piece and not first:
            return
        first = False
        yield piece


async def _read_piece(source: Any) -> Any:
    if asyncio.iscoroutinefunction(source.read):
        return await source.read(wire.CHUNK_BYTES)
    return await in_thread(source.read, wire.CHUNK_BYTES)
