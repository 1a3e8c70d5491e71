"""The asyncio client: the promises of the threaded one, and cancellation."""

from __future__ import annotations

import asyncio
import io
import json
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from helpers import descriptors

from matchlock import (
    AsyncClient,
    Client,
    CommandError,
    Config,
    CreateOptions,
    FileChange,
    MatchlockError,
    NetworkHookRequest,
    NetworkHookResult,
    NetworkHookRule,
    NetworkInterceptionConfig,
    Sandbox,
    VFSHookEvent,
    VFSHookRule,
    VFSInterceptionConfig,
)

T = TypeVar("T")


@asynccontextmanager
async def started(program: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(Config(program)) as client:
        await client.create(CreateOptions(image="image1"))
        yield client


def run(program: str, body: Callable[[AsyncClient], Coroutine[Any, Any, T]]) -> T:
    async def all() -> T:
        async with started(program) as client:
            return await body(client)

    return asyncio.run(asyncio.wait_for(all(), 60))


async def requests(client: AsyncClient, method: str) -> list[dict[str, Any]]:
    received = json.loads((await client.exec("requests")).stdout)
    return [request for request in received if request["method"] == method]


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(2000):
        if await condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came")


async def sent(client: AsyncClient, command: str) -> None:
    """Waits until the server has the request for a command."""

    async def there() -> bool:
        return any(request["params"]["command"] == command for request in await requests(client, "exec"))

    await eventually(there)


def test_it_has_every_method_of_the_threaded_client() -> None:
    mine = {name for name in vars(Client) if not name.startswith("_")}
    assert mine == {name for name in vars(AsyncClient) if not name.startswith("_")}


def test_commands(program: str) -> None:
    async def body(client: AsyncClient) -> None:
        assert client.vm_id == "vm-00000001"
        result = await client.exec("echo hi", user="u", env={"A": "b"})
        assert (result.stdout, result.stdout_bytes, result.duration_ms) == ("hi", b"hi", 12)
        text, data = io.StringIO(), io.BytesIO()
        await client.exec_stream("hex c3 a9 ff", text)
        await client.exec_stream("hex c3 a9 ff", data)
        assert (text.getvalue(), data.getvalue()) == ("é\ufffd", b"\xc3\xa9\xff")
        with pytest.raises(MatchlockError, match="no"):
            await client.exec("fail -32001 no")
        assert (await client.exec_stream("junk")).exit_code == 0
        process = await client.exec_detached(["serve"])
        await process.kill()
        await process.terminate()
        assert await process.output() == b"last \xff"
        assert (await process.wait(), await process.poll()) == (9, 9)
        assert len(await client.processes()) == 2

    run(program, body)


def test_a_hundred_at_a_time(program: str) -> None:
    async def body(client: AsyncClient) -> None:
        results = await asyncio.gather(*(client.exec(f"echo {number}") for number in range(100)))
        assert [result.stdout for result in results] == [str(number) for number in range(100)]

    run(program, body)


def test_pipes_and_terminals(program: str) -> None:
    async def body(client: AsyncClient) -> None:
        out, err = io.StringIO(), io.StringIO()
        assert (await client.exec_pipe("cat", io.StringIO("héllo"), out, err)).exit_code == 0
        assert (out.getvalue(), err.getvalue()) == ("héllo", "6\n")
        reader = asyncio.StreamReader()
        reader.feed_data(b"abc")
        reader.feed_eof()
        data = io.BytesIO()
        await client.exec_pipe("cat", reader, data)
        assert data.getvalue() == b"abc"
        assert (await client.exec_pipe("cat")).exit_code == 0
        content = os.urandom(1 << 20) * 5
        data = io.BytesIO()
        await client.exec_pipe("cat", io.BytesIO(content), data)
        assert data.getvalue() == content
        assert int((await client.exec("ahead")).stdout) <= (1 << 20) * 3 // 2

        read, write = os.pipe()

        async def sizes() -> AsyncIterator[tuple[int, int]]:
            yield (30, 100)
            yield (31, 101)
            os.close(write)

        with os.fdopen(read, "rb") as stdin:
            out = io.StringIO()
            await client.exec_interactive("cat", stdin, out, resize=sizes())
            assert out.getvalue() == "30x100\n31x101\n"
        out = io.StringIO()
        await client.exec_interactive("exit 1", stdout=out, resize=[(1, 2)])

    run(program, body)


def test_asyncio_streams_are_drained(program: str) -> None:
    class Stream:
        def __init__(self) -> None:
            self.data = b""
            self.drained = 0

        def write(self, data: bytes, /) -> None:
            self.data += data

        async def drain(self) -> None:
            self.drained += 1

    async def body(client: AsyncClient) -> None:
        stream = Stream()
        await client.exec_stream("hex c3 ff", stream)
        assert (stream.data, stream.drained) == (b"\xc3\xff", 2)
        await client.write_file("/a", b"abc")
        stream = Stream()
        assert await client.download("/a", stream) == 3
        assert (stream.data, stream.drained) == (b"abc", 1)

    run(program, body)


def test_cancelling_cancels(program: str) -> None:
    async def body(client: AsyncClient) -> None:
        task = asyncio.create_task(client.exec("sleep 30"))
        await sent(client, "sleep 30")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError, match=r"request exec \(id=\d+\) timed out after 0.05s"):
            await client.exec("sleep 30", timeout=0.05)
        with pytest.raises(TimeoutError):
            await client.exec_pipe("sleep 30", timeout=0.05)
        assert len(await requests(client, "cancel")) == 3

    run(program, body)


def test_what_is_refused_is_refused_before_anything_is_sent(program: str) -> None:
    async def body(client: AsyncClient) -> None:
        no_content: Any = 5
        no_command: Any = b"ls"
        no_time: Any = "x"
        process, watch = await client.exec_detached("x"), await client.watch("/w")
        before = len(json.loads((await client.exec("requests")).stdout))
        with pytest.raises(TypeError):
            await client.write_file("/a", no_content)
        for run in (client.exec, client.exec_stream, client.exec_pipe, client.exec_interactive, client.exec_detached):
            with pytest.raises(TypeError):
                await run(no_command)
            for timeout, error in ((math.nan, ValueError), (no_time, TypeError)):
                with pytest.raises(error):
                    await run("x", timeout=timeout)
        for call in (
            client.processes(math.nan),
            client.write_file("/a", "x", timeout=math.nan),
            client.read_file("/a", math.nan),
            client.list_files("/a", math.nan),
            client.upload("/a", io.BytesIO(), timeout=math.nan),
            client.download("/a", io.BytesIO(), timeout=math.nan),
            client.stat("/a", timeout=math.nan),
            client.mkdir("/a", timeout=math.nan),
            client.remove_file("/a", timeout=math.nan),
            client.rename("/a", "/b", timeout=math.nan),
            client.watch("/a", timeout=math.nan),
            client.log(math.nan),
            client.log_stream(timeout=math.nan),
            process.wait(math.nan),
            watch.next(math.nan),
            client.close(math.nan),
        ):
            with pytest.raises(ValueError):
                await call
        with pytest.raises(TypeError):
            await client.close(no_time)
        assert len(json.loads((await client.exec("requests", timeout=math.inf)).stdout)) == before + 1
        assert await process.wait(1e12) == 9

    run(program, body)


def test_a_timeout_holds_for_what_is_asked_first(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SILENT", "1")

    async def body(client: AsyncClient) -> None:
        for call in (
            client.exec(["x"], timeout=0.05),
            client.exec_pipe("cat", io.StringIO(), timeout=0.05),
            client.exec_detached("x", timeout=0.05),
            client.upload("/a", io.BytesIO(), timeout=0.05),
            client.stat("/a", timeout=0.05),
            client.watch("/a", timeout=0.05),
        ):
            with pytest.raises(TimeoutError, match=r"^request hello \(id=\d+\) timed out after 0.05s$"):
                await call

    run(program, body)


def test_closing_before_start_changes_nothing(program: str) -> None:
    async def body() -> None:
        client = AsyncClient(Config(program))
        await client.close()
        async with client:
            assert (await client.exec("echo x")).stdout == "x"

    asyncio.run(body())


def test_a_stream_that_fails_fails_its_caller(program: str) -> None:
    class Broken(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    class BrokenIn(io.StringIO):
        def read(self, _: int | None = None) -> str:
            raise OSError("disk on fire")

    async def body(client: AsyncClient) -> None:
        with pytest.raises(BrokenPipeError):
            await client.exec_stream("repeat 1000 41", Broken())
        with pytest.raises(OSError, match="disk on fire"):
            await client.exec_pipe("cat", BrokenIn())
        assert (await client.exec("echo on")).stdout == "on"

    run(program, body)


def test_output_past_the_bound_waits(program: str) -> None:
    class Slow:
        taken = 0

        async def write(self, data: bytes, /) -> None:
            self.taken += len(data)
            if self.taken == len(data):
                await asyncio.sleep(0.2)

        async def drain(self) -> None: ...

    async def body(client: AsyncClient) -> None:
        slow = Slow()
        await client.exec_stream("repeat 400 " + "41" * 50_000, slow)
        assert slow.taken == 400 * 50_000

    run(program, body)


def test_files(program: str) -> None:
    async def body(client: AsyncClient) -> None:
        await client.write_file("/a", "héllo")
        assert await client.read_file("/a") == "héllo".encode()
        content = os.urandom((5 << 20) + 3)
        await client.write_file("/b", content)
        assert await client.read_file("/b") == content
        assert await client.upload("/c", io.BytesIO(content)) == len(content)
        target = io.BytesIO()
        assert await client.download("/c", target) == len(content)
        assert target.getvalue() == content
        assert await client.download("/c", io.BytesIO(), offset=5, length=10) == 10
        assert [file.name for file in await client.list_files("/")] == ["a", "d"]
        assert (await client.stat("/a")).uid == 1
        await client.mkdir("/d")
        await client.rename("/d", "/e")
        await client.remove_file("/e")
        async with client.watch("/w") as watch:
            assert (await watch.next(math.inf)).kind == "created"
        assert [change async for change in watch] == []
        waiting = [asyncio.create_task(client.watch("/w")), asyncio.ensure_future(client.watch("/w"))]
        for each in await asyncio.gather(*waiting):
            each.close()
        async with await client.watch("/w") as watch:
            assert await watch.next(5) == FileChange("created", "/w/a")
            assert (await watch.__anext__()).kind == "modified"
            watch.close()
            assert [change async for change in watch] == []
        assert await client.log() == "log\ufffd"
        out = io.StringIO()
        with pytest.raises(TimeoutError):
            await client.log_stream(out, timeout=0.2)
        assert out.getvalue() == "log é"
        assert (await client.port_forward("1:2"))[0].remote_port == 2
        assert (await client.allow_list_add("b")).allowed_hosts == ["a", "b"]
        assert (await client.allow_list_delete("b")).changed == ["b"]
        await client.add_mount("/b")
        with pytest.raises(MatchlockError, match="is in use"):
            await client.remove_mount("/busy")
        await client.remove_mount("/busy", force=True)
        assert [mount.guest_path for mount in await client.mounts()] == ["/a", "/b"]

    run(program, body)


def test_death_and_close(program: str) -> None:
    async def body(client: AsyncClient) -> None:
        waiting = asyncio.create_task(client.exec("sleep 30"))
        await sent(client, "sleep 30")
        with pytest.raises(MatchlockError, match="closed unexpectedly: no more$"):
            await client.exec("die no more")
        with pytest.raises(MatchlockError, match="closed unexpectedly"):
            await waiting
        with pytest.raises(MatchlockError, match="not running"):
            await client.exec("echo x")
        await client.close()
        await client.close()
        await client.remove()

    run(program, body)


@pytest.mark.parametrize("way", ["FAKE_HANG", "FAKE_DEAF"])
def test_a_server_that_does_not_close_is_killed(program: str, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setenv(way, "1")

    async def body() -> None:
        client = AsyncClient(Config(program))
        await client.start()
        writer = asyncio.create_task(client.write_file("/a", b"x" * (3 << 20)))
        await asyncio.sleep(0.1)
        await asyncio.wait_for(client.close(timeout=0.1), 5)
        if way == "FAKE_DEAF":
            with pytest.raises(MatchlockError):
                await asyncio.wait_for(writer, 5)

    asyncio.run(body())


def test_nothing_is_left(program: str) -> None:
    async def body(client: AsyncClient) -> None:
        await client.exec("echo x")

    run(program, body)
    before = descriptors()
    for _ in range(5):
        run(program, body)
    assert descriptors() == before


def test_hooks_may_be_coroutines(program: str) -> None:
    async def body(client: AsyncClient) -> None:
        seen: list[str] = []

        async def after(event: VFSHookEvent) -> None:
            seen.append(event.path)
            await client.write_file("/workspace/log", "x")

        async def dangerous(inner: AsyncClient, event: VFSHookEvent) -> None:
            assert inner is client

        async def mutate(_: Any) -> bytes:
            return b"changed"

        async def decide(request: Any) -> str:
            return "block" if request.path == "/no" else "allow"

        def ask(request: NetworkHookRequest) -> NetworkHookResult:
            return NetworkHookResult(action="block")

        async def ask_too(request: NetworkHookRequest) -> NetworkHookResult | None:
            await asyncio.sleep(0)
            return None

        mutate_hook: Any = mutate
        decide_hook: Any = decide
        rules = [
            VFSHookRule(phase="after", hook=after),
            VFSHookRule(phase="after", dangerous_hook=dangerous),
            VFSHookRule(mutate_hook=mutate_hook),
            VFSHookRule(action_hook=decide_hook),
        ]
        sandbox = (
            Sandbox("i2")
            .with_vfs_interception(VFSInterceptionConfig(rules=rules))
            .with_network_interception(
                NetworkInterceptionConfig([NetworkHookRule(hook=ask), NetworkHookRule(hook=ask_too)])
            )
        )
        await client.launch(sandbox)
        await client.write_file("/workspace/a", "x")
        assert await client.read_file("/workspace/a") == b"changed"
        with pytest.raises(MatchlockError, match="blocked"):
            await client.write_file("/no", "x")
        assert seen == ["/workspace/a"]
        for id, answer in (("1", {"action": "block"}), ("2", {})):
            asked = json.dumps({"callback_id": f"network_hook_{id}"})
            assert json.loads((await client.exec(f"callback {asked}")).stdout) == answer
        sent = (await requests(client, "create"))[-1]["params"]
        path = Path(sent["network"]["interception"]["callback_socket"])
        assert path.exists()
        await client.close()
        assert not path.parent.exists()

    run(program, body)


def test_commands_of_the_program(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        client = AsyncClient(Config(program))
        assert (await client.volume_create("data", 16)).path == "/v/data.ext4"
        assert await client.volume_list() == []
        await client.volume_remove("data")
        async with client:
            await client.create(CreateOptions(image="ix"))
        with pytest.raises(CommandError, match="not found"):
            await client.remove()

    asyncio.run(body())
