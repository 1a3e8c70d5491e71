"""The extensions of the package in sdk/python over the published one, against the real program with real guests."""

from __future__ import annotations

import asyncio
import hashlib
import io
import resource
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from matchlock import (
    Client,
    MountConfig,
    RPCError,
    Sandbox,
    VFSHookEvent,
    VFSHookRule,
    VFSInterceptionConfig,
)

import conftest
import homes

if conftest.PUBLISHED:
    pytest.skip("the published client has none of this", allow_module_level=True)

from matchlock import AsyncClient, CommandError

STREAM_BYTES = 96 << 20
"""More than the memory it may take, several times."""

MEMORY_BYTES = 32 << 20


def test_a_list_of_arguments_needs_no_quotes(client: Client) -> None:
    assert client.exec(["echo", "a  b", "$HOME", "'"]).stdout == "a  b $HOME '\n"
    out = io.BytesIO()
    client.exec_stream(["printf", "\\377"], stdout=out)
    assert out.getvalue() == b"\xff"


def test_an_image_without_a_shell(home: homes.Home) -> None:
    image = conftest.provide(home, "distroless:latest")
    with Client() as client:
        client.launch(Sandbox(image))
        assert client.exec(["/hello/echo", "hi"]).stdout == "hi\n"
        assert client.exec(["echo", "found on PATH"]).stdout == "found on PATH\n"
        with pytest.raises(RPCError) as caught:
            client.exec("echo hi")
        assert caught.value.is_exec_error()
    client.remove()


@pytest.mark.parametrize("init", [False, True])
def test_the_entrypoint_is_the_first_process_or_below_an_init(home: homes.Home, alpine: str, init: bool) -> None:
    sandbox = Sandbox(alpine).with_entrypoint("sh", "-c", "echo process $$; sleep 1000")
    with Client() as client:
        client.launch(sandbox.with_init() if init else sandbox)
        deadline = time.monotonic() + 60
        while "process" not in (log := client.log()):
            assert time.monotonic() < deadline, log
            time.sleep(0.1)
        assert f"process {2 if init else 1}\n" in log
    client.remove()


def test_environment_and_user_of_one_command(client: Client) -> None:
    out = io.StringIO()
    result = client.exec("id -un; echo $A-$B", user="app", env={"A": "1", "B": "zwei ü"})
    assert result.stdout == "app\n1-zwei ü\n"
    client.exec_stream("id -u; echo $A", stdout=out, user="1000:1000", env={"A": "2"})
    client.exec_pipe("echo $A", stdout=out, env={"A": "3"})
    assert out.getvalue() == "1000\n2\n3\n"
    terminal = io.StringIO()
    client.exec_interactive("echo $A", stdout=terminal, env={"A": "4"})
    assert terminal.getvalue() == "4\r\n"
    assert client.exec("echo [$A]").stdout == "[]\n"


def test_bytes_stay_bytes(client: Client) -> None:
    content = bytes(range(256)) * 1000
    out = io.BytesIO()
    assert client.exec_pipe("cat", io.BytesIO(content), out).exit_code == 0
    assert out.getvalue() == content
    result = client.exec("printf '\\377\\000a'")
    assert (result.stdout_bytes, result.stdout) == (b"\xff\x00a", "\ufffd\x00a")


def test_a_detached_command_outlives_its_call(client: Client) -> None:
    server = client.exec_detached("mkdir -p /www; echo page > /www/a; exec httpd -f -p 127.0.0.1:8081 -h /www")
    wait = "until wget -qO - http://127.0.0.1:8081/a; do sleep 0.1; done"
    assert client.exec(wait, timeout=60).stdout == "page\n"
    assert server.poll() is None
    with pytest.raises(TimeoutError):
        server.wait(timeout=0.2)
    listed = {process.id: process for process in client.processes()}
    assert listed[server.id].running and "httpd" in listed[server.id].command
    server.kill()
    assert server.wait(timeout=30) == 128 + signal.SIGKILL
    assert server.poll() == 137
    assert client.exec("wget -qO - http://127.0.0.1:8081/a").exit_code != 0


def test_a_detached_command_ends_by_itself(client: Client) -> None:
    process = client.exec_detached(
        ["sh", "-c", "echo said $A by $(id -un) in $PWD; exit 9"], "/tmp", user="app", env={"A": "x"}
    )
    assert process.wait(timeout=30) == 9
    assert "said x by app in /tmp" in client.log()
    assert process.output() == b"said x by app in /tmp\n"
    asked = client.exec_detached("trap 'exit 4' TERM; while :; do sleep 0.1; done")
    time.sleep(0.5)
    asked.terminate()
    assert asked.wait(timeout=30) == 4


def test_what_a_detached_command_started_stays(client: Client) -> None:
    assert client.exec_detached("(sleep 1; touch /tmp/later) & exit 0").wait(timeout=30) == 0
    client.exec("until test -e /tmp/later; do sleep 0.1; done", timeout=30)
    # Unlike what an ordinary command started.
    client.exec("(sleep 1; touch /tmp/never) & exit 0")
    time.sleep(1.5)
    assert client.exec("test -e /tmp/never").exit_code == 1


def test_files_and_directories(client: Client) -> None:
    client.mkdir("/work/a/b", parents=True)
    client.mkdir("/work/a/b", parents=True)
    with pytest.raises(RPCError) as caught:
        client.mkdir("/work/a/b")
    assert caught.value.is_file_error()
    client.mkdir("/work/private", mode=0o700)
    assert client.stat("/work/private").permissions == 0o700
    client.write_file("/work/a/b/file", "content", mode=0o600)
    client.exec("ln -s b/file /work/a/link; chown 1000:2000 /work/a/b/file")
    file = client.stat("/work/a/b/file")
    assert (file.name, file.size, file.permissions, file.is_dir) == ("file", 7, 0o600, False)
    assert (file.uid, file.gid) == (1000, 2000)
    assert file.modified is not None and abs(time.time() - file.modified.timestamp()) < 600
    assert client.stat("/work/a/link").size == 7
    link = client.stat("/work/a/link", follow=False)
    assert link.is_symlink and link.target == "b/file"
    assert client.list_files("/work/a")[1].target == "b/file"
    client.rename("/work/a/b/file", "/work/moved")
    assert client.read_file("/work/moved") == b"content"
    with pytest.raises(RPCError):
        client.stat("/work/a/b/file")
    with pytest.raises(RPCError):
        client.remove_file("/work/a")
    client.remove_file("/work/moved")
    client.remove_file("/work/a", recursive=True)
    assert [entry.name for entry in client.list_files("/work")] == ["private"]


class Zeros(io.RawIOBase):
    """So many bytes that are not all the same, held by nobody."""

    def __init__(self, size: int) -> None:
        self.left = size
        self.hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = (self.left.to_bytes(8, "big") * (size // 8 + 1))[: min(size, self.left)]
        self.left -= len(piece)
        self.hash.update(piece)
        return piece


class Hash(io.RawIOBase):
    """A hash of the written data."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return len(data)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_streams_of_any_length_in_constant_memory(client: Client) -> None:
    client.upload("/warm", io.BytesIO(b"x" * (4 << 20)))
    client.download("/warm", io.BytesIO())
    client.remove_file("/warm")
    before = peak_bytes()
    source, target, part = Zeros(STREAM_BYTES), Hash(), Hash()
    assert client.upload("/stream", source, mode=0o640) == STREAM_BYTES  # type: ignore[arg-type]
    assert client.stat("/stream").size == STREAM_BYTES
    assert client.download("/stream", target) == STREAM_BYTES  # type: ignore[arg-type]
    assert target.hash.digest() == source.hash.digest()
    assert client.exec("sha256sum < /stream").stdout.split()[0] == source.hash.hexdigest()
    assert client.download("/stream", part, offset=STREAM_BYTES - 10, length=100) == 10  # type: ignore[arg-type]
    assert client.stat("/stream").permissions == 0o640
    streamed = Hash()
    assert client.exec_stream("cat /stream", stdout=streamed).exit_code == 0  # type: ignore[arg-type]
    assert streamed.hash.digest() == source.hash.digest()
    assert peak_bytes() - before < MEMORY_BYTES
    client.upload("/stream", io.BytesIO(b"short"))
    assert client.read_file("/stream") == b"short"
    client.remove_file("/stream")


def test_input_of_any_length(client: Client) -> None:
    # More than the server keeps for a program that takes it slowly.
    size = 80 << 20
    source, out = Zeros(size), io.StringIO()
    assert client.exec_pipe("sleep 1; sha256sum", stdin=source, stdout=out).exit_code == 0  # type: ignore[arg-type]
    assert out.getvalue().split()[0] == source.hash.hexdigest()


def test_a_large_content_is_written_whole(client: Client) -> None:
    content = bytes(range(256)) * (48 << 10)
    client.write_file("/large", content)
    assert client.read_file("/large") == content
    client.remove_file("/large")


def test_watch(client: Client) -> None:
    client.mkdir("/seen/below", parents=True)
    with client.watch("/seen", recursive=True, timeout=30) as watch:
        client.write_file("/seen/below/a", "x")
        assert (change := watch.next(30)).kind == "created" and change.path == "/seen/below/a"
        assert watch.next(30).kind == "modified"
        client.remove_file("/seen/below/a")
        while (change := watch.next(30)).kind != "removed":
            assert change.path == "/seen/below/a"
    with pytest.raises(RPCError) as caught:
        client.watch("/nowhere")
    assert caught.value.is_file_error()


def test_a_stream_that_blocks_holds_up_no_other_request(client: Client) -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            entered.set()
            leave.wait(30)
            return len(text)

    with ThreadPoolExecutor() as pool:
        slow = pool.submit(client.exec_stream, "echo x", Slow())
        assert entered.wait(30)
        assert client.exec("echo other", timeout=30).stdout == "other\n"
        leave.set()
        assert slow.result().exit_code == 0


def test_mounts_of_an_asyncio_client(home: homes.Home, alpine: str, tmp_path: Path) -> None:
    async def calls() -> None:
        async with AsyncClient() as client:
            sandbox = Sandbox(alpine).mount_host_dir("/workspace/here", str(tmp_path), owner_gid=7)
            sandbox.mount("/at-once", MountConfig(type="host_fs", host_path=str(tmp_path), cache="none"))
            await client.launch(sandbox)
            assert (await client.exec("pwd; stat -c %g here")).stdout == "/workspace\n7\n"
            for text in ("one", "second", "3"):
                (tmp_path / "text").write_text(text, encoding="utf-8")
                size = f"{len(text)}\n"
                assert (await client.exec("cat /at-once/text; stat -c %s /at-once/text")).stdout == text + size
            await client.write_file("/workspace/here/made", b"x" * 100_000)
        await client.remove()

    asyncio.run(calls())
    assert (tmp_path / "made").read_bytes() == b"x" * 100_000


def test_mounts_come_and_go_while_it_runs(home: homes.Home, alpine: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of the host\n")

    async def body() -> None:
        async with AsyncClient() as client:
            await client.launch(Sandbox(alpine))
            await client.add_mount("/work", MountConfig("host_fs", str(tmp_path)))
            assert (await client.exec("cat /work/file; echo guest > /work/new")).stdout == "of the host\n"
            process = await client.exec_detached("cd /work && echo up > up && sleep 600")
            while not (tmp_path / "up").exists():
                await asyncio.sleep(0.01)
            with pytest.raises(RPCError, match="what is mounted at /work is in use"):
                await client.remove_mount("/work")
            await process.kill()
            await client.remove_mount("/work", force=True)
            assert await client.mounts() == []
        await client.remove()

    asyncio.run(body())
    assert (tmp_path / "new").read_text() == "guest\n"
    with Client() as client:
        client.launch(Sandbox(alpine))
        client.add_mount("/memory")
        assert client.exec("echo kept > /memory/x; cat /memory/x").stdout == "kept\n"
        assert [(mount.guest_path, mount.added) for mount in client.mounts()] == [("/memory", True)]
        client.remove_mount("/memory")
    client.remove()


def test_the_allow_list_changes_while_it_runs(home: homes.Home, alpine: str) -> None:
    sandbox = Sandbox(alpine).allow_host("a.example").deny_host("evil.example").passthrough_host("a.example")
    with Client() as client:
        client.launch(sandbox.with_network_arrival("tap"))
        added = client.allow_list_add("b.example:8080", "a.example")
        assert (added.changed, added.allowed_hosts) == (["b.example:8080"], ["a.example", "b.example:8080"])
        deleted = client.allow_list_delete("a.example")
        assert (deleted.changed, deleted.allowed_hosts) == (["a.example"], ["b.example:8080"])
        with pytest.raises(RPCError, match="is a URL"):
            client.allow_list_add("http://c.example")
    client.remove()


def test_hooks_and_masks_of_an_asyncio_client(home: homes.Home, alpine: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("secret", encoding="utf-8")
    (tmp_path / ".git" / "hooks").mkdir(parents=True)
    (tmp_path / "locked").write_text("host", encoding="utf-8")
    heard: list[tuple[str, str, int]] = []

    async def hear(_: AsyncClient, event: VFSHookEvent) -> None:
        heard.append((event.op, event.path, event.size))

    masked = MountConfig(
        type="host_fs", host_path=str(tmp_path), mask=[".env*"], mask_readonly=["/locked"], protect=True
    )
    rule = VFSHookRule(phase="after", ops=["write"], path="/workspace/*", dangerous_hook=hear)

    async def calls() -> None:
        async with AsyncClient() as client:
            sandbox = Sandbox(alpine).mount("/workspace", masked)
            await client.launch(sandbox.with_vfs_interception(VFSInterceptionConfig(rules=[rule])))
            assert (await client.exec("ls -A")).stdout == ".git\nlocked\n"
            for command in ("cat .env", "echo x > .env", "echo x > locked", "echo x > .git/hooks/h", "mv .git x"):
                assert (await client.exec(command)).exit_code != 0, command
            await client.write_file("/workspace/made", b"123")
            assert (await client.exec("printf 12345 >> made")).exit_code == 0
            # All that a call does is told before it returns; tasks of hooks are begun by then.
            await asyncio.sleep(0)
            assert heard == [("write", "/workspace/made", 3), ("write", "/workspace/made", 5)]
        await client.remove()

    asyncio.run(calls())
    assert (tmp_path / ".env").read_text(encoding="utf-8") == "secret"
    assert (tmp_path / "locked").read_text(encoding="utf-8") == "host"
    assert list((tmp_path / ".git" / "hooks").iterdir()) == []


def test_a_volume_outlives_its_sandbox(home: homes.Home, alpine: str) -> None:
    with Client() as client:
        volume = client.volume_create("outlives", size_mb=16)
        client.launch(Sandbox(alpine).with_disk("/data", "@outlives", owner_uid=1000))
        assert client.exec("stat -c %u /data; seq 10000 > /data/numbers").stdout == "1000\n"
        with Client() as other, pytest.raises(RPCError, match="in use: end the sandbox") as caught:
            other.launch(Sandbox(alpine).with_disk("/data", volume.path))
        assert caught.value.is_vm_error()
        with pytest.raises(CommandError, match="volume outlives is in use"):
            client.volume_remove("outlives")
    client.remove()
    with Client() as client:
        client.launch(Sandbox(alpine).with_disk("/data", volume.path, readonly=True))
        assert client.exec("wc -l < /data/numbers; touch /data/x || echo no").stdout == "10000\nno\n"
    client.remove()
    client.volume_remove("outlives")


def test_the_asyncio_client(home: homes.Home, alpine: str) -> None:
    async def body() -> None:
        async with AsyncClient() as client:
            await client.launch(Sandbox(alpine).with_memory(256))
            results = await asyncio.gather(*(client.exec(f"echo {number}") for number in range(20)))
            assert [result.stdout for result in results] == [f"{number}\n" for number in range(20)]
            out = io.BytesIO()
            reader = asyncio.StreamReader()
            reader.feed_data(b"\xffabc")
            reader.feed_eof()
            assert (await client.exec_pipe("cat", reader, out)).exit_code == 0
            assert out.getvalue() == b"\xffabc"
            terminal = io.StringIO()
            await client.exec_interactive("stty size", stdout=terminal, rows=30, cols=90)
            assert terminal.getvalue() == "30 90\r\n"
            with pytest.raises(TimeoutError):
                await client.exec("sleep 100", timeout=0.5)
            task = asyncio.create_task(client.exec("sleep 100"))
            await asyncio.sleep(0.5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            content = b"\x00\x01" * (1 << 20)
            assert await client.upload("/up", io.BytesIO(content)) == len(content)
            target = io.BytesIO()
            await client.download("/up", target)
            assert target.getvalue() == content
            process = await client.exec_detached(["sleep", "100"])
            await process.kill()
            assert await process.wait(30) == 137
            async with client.watch("/tmp") as watch:
                await client.write_file("/tmp/x", "x")
                assert (await watch.next(30)).kind == "created"
            with pytest.raises(RPCError):
                await client.read_file("/nowhere")
        await client.remove()

    asyncio.run(asyncio.wait_for(body(), 120))
