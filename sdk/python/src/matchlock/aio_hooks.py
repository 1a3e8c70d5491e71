"""Hooks on an event loop: after-hooks as tasks, the callback socket served by coroutines.

Hooks may be coroutine functions; network hooks that are not run in threads, so that they may block. Not here: choosing
hooks, and the meaning of their answers (`vfs_hooks`, `network_hooks`).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import shutil
from collections.abc import Coroutine
from typing import Any

from . import network_hooks, vfs_hooks
from .aio_streams import in_thread, settle
from .interception import VFSHookEvent
from .messages import Params
from .vfs_hooks import Hook, VFSHooks


class AsyncEventRunner:
    """Runs after-hooks as tasks."""

    def __init__(self) -> None:
        self.hooks = VFSHooks()
        self._active: VFSHooks | None = None
        self._dangerous = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, client: object, event: VFSHookEvent) -> None:
        """Starts the hooks of an event. Safe ones run one at a time, and an event that comes meanwhile is not for
        them: it may be of their own making."""
        hooks = self.hooks
        for hook in hooks.dangerous:
            if hook.matches(event.op, event.path) and self._dangerous < vfs_hooks.MAX_DANGEROUS:
                self._dangerous += 1
                self._task(self._run_dangerous(hook, client, event))
        safe = [hook for hook in hooks.after if hook.matches(event.op, event.path)]
        if safe and self._active is not hooks:
            self._active = hooks
            self._task(self._run_safe(hooks, safe, event))

    def _task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine, name="matchlock-hook")
        # The loop itself only holds tasks weakly.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_dangerous(self, hook: Hook, client: object, event: VFSHookEvent) -> None:
        try:
            # Nobody waits for an after-hook, so its failure has no receiver.
            with contextlib.suppress(Exception):
                await settle(hook.callback(client, event))
        finally:
            self._dangerous -= 1

    async def _run_safe(self, hooks: VFSHooks, matching: list[Hook], event: VFSHookEvent) -> None:
        try:
            for hook in matching:
                with contextlib.suppress(Exception):
                    await settle(hook.callback(event))
        finally:
            if self._active is hooks:
                self._active = None


class AsyncHookServer:
    """The callback socket, served by coroutines."""

    def __init__(self, callbacks: network_hooks.Callbacks, directory: str) -> None:
        self._callbacks = callbacks
        self._slots = asyncio.Semaphore(network_hooks.MAX_CONCURRENT)
        self._directory = directory
        self._server: asyncio.AbstractServer | None = None
        self.path = os.path.join(directory, "hook.sock")

    @staticmethod
    async def start(callbacks: network_hooks.Callbacks) -> AsyncHookServer:
        """Starts the socket in a directory of its own."""
        server = AsyncHookServer(callbacks, network_hooks.socket_directory())
        try:
            server._server = await asyncio.start_unix_server(
                server._serve, server.path, limit=network_hooks.MAX_REQUEST_BYTES
            )
        except BaseException:
            server.stop()
            raise
        return server

    def stop(self) -> None:
        """Ends the socket, and removes it."""
        if self._server is not None:
            self._server.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with self._slots:
                with contextlib.suppress(OSError, ValueError):
                    line = await reader.readline()
                    if line:
                        writer.write(network_hooks.encode_answer(await self._answer(line)))
                        await writer.drain()
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> Params:
        try:
            hook, request = network_hooks.read_request(self._callbacks, line)
            if inspect.iscoroutinefunction(hook):
                return network_hooks.answer(await hook(request))
            return network_hooks.answer(await settle(await in_thread(hook, request)))
        except Exception as error:
            return {"error": str(error) or type(error).__name__}
