"""Every call in the API of the published client, against the real program with real guests.

The same file runs with both packages. Not here: what only the package of sdk/python has (`test_extensions`).
"""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import matchlock
import pytest
from matchlock import (
    Client,
    Config,
    CreateOptions,
    ImageConfig,
    MatchlockError,
    MountConfig,
    NetworkHookRule,
    NetworkInterceptionConfig,
    RPCError,
    Sandbox,
    VFSHookEvent,
    VFSHookRule,
    VFSInterceptionConfig,
)

import conftest
import homes

# Commands


def test_exec(client: Client) -> None:
    result = client.exec("echo out; echo err >&2; exit 7")
    assert (result.exit_code, result.stdout, result.stderr) == (7, "out\n", "err\n")
    assert isinstance(result.duration_ms, int) and 0 <= result.duration_ms < 60_000
    assert client.exec("pwd", working_dir="/etc").stdout == "/etc\n"
    assert client.exec("pwd", "/home/app").stdout == "/home/app\n"
    assert client.exec("true", timeout=60).exit_code == 0
    assert client.exec("printf 'h\\303\\251'").stdout == "hé"
    assert client.exec("cat").stdout == "", "the input of exec is empty"


def test_a_command_that_cannot_start(client: Client) -> None:
    with pytest.raises(RPCError) as caught:
        client.exec("true", working_dir="/etc/passwd")
    assert caught.value.is_exec_error() and caught.value.code == -32001
    assert client.exec("no-such-program").exit_code == 127


def test_a_signal_is_an_exit_status(client: Client) -> None:
    assert client.exec("sh -c 'kill -9 $$'; exit $?").exit_code == 137
    assert client.exec_pipe("sh -c 'kill -15 $$'; exit $?").exit_code == 143


def test_exec_times_out_and_the_command_is_gone(client: Client) -> None:
    beat = "while :; do cat /proc/uptime > /tmp/{}; sleep 0.05; done"
    calls = [client.exec, client.exec_stream, client.exec_pipe, client.exec_interactive]
    for number, call in enumerate(calls):
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            call(beat.format(number), timeout=1.0)  # type: ignore[operator]
        assert time.monotonic() - start < 5
    time.sleep(1.0)
    beats = [client.read_file(f"/tmp/{number}") for number in range(len(calls))]
    time.sleep(0.5)
    assert [client.read_file(f"/tmp/{number}") for number in range(len(calls))] == beats


def test_exec_stream(client: Client) -> None:
    out, err = io.StringIO(), io.StringIO()
    result = client.exec_stream("echo a; echo b >&2; pwd; exit 3", stdout=out, stderr=err, working_dir="/etc")
    assert (result.exit_code, out.getvalue(), err.getvalue()) == (3, "a\n/etc\n", "b\n")
    assert result.duration_ms >= 0
    assert client.exec_stream("echo nobody listens").exit_code == 0


def test_streamed_output_comes_as_it_is_written(client: Client) -> None:
    class Times(io.StringIO):
        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def write(self, text: str) -> int:
            self.times.append(time.monotonic())
            return super().write(text)

    out = Times()
    client.exec_stream("echo 1; sleep 1; echo 2", stdout=out)
    assert out.getvalue() == "1\n2\n"
    assert out.times[-1] - out.times[0] > 0.8


def test_streamed_characters_are_never_cut(client: Client) -> None:
    out = io.StringIO()
    client.exec_stream("i=0; while [ $i -lt 20000 ]; do printf 'a€é'; i=$((i+1)); done", stdout=out)
    assert out.getvalue() == "a€é" * 20_000


def test_exec_pipe(client: Client) -> None:
    content = bytes(range(128)) * 5000
    out, err = io.StringIO(), io.StringIO()
    result = client.exec_pipe("tee /tmp/piped; echo end >&2; exit 4", io.BytesIO(content), out, err, "/tmp")
    assert (result.exit_code, out.getvalue(), err.getvalue()) == (4, content.decode(), "end\n")
    assert client.read_file("/tmp/piped") == content
    assert client.exec_pipe("cat > /tmp/text", stdin=io.StringIO("héllo")).exit_code == 0
    assert client.read_file("/tmp/text") == "héllo".encode()
    out = io.StringIO()
    client.exec_pipe("id -u; id -g; cat", stdout=out, user="1000:1000")
    assert out.getvalue() == "1000\n1000\n"
    out = io.StringIO()
    client.exec_pipe("id -un; id -Gn", stdout=out, user="app")
    assert out.getvalue().split() == ["app", "app", "readers"]


def test_exec_pipe_ends_before_its_input(client: Client) -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as stdin, os.fdopen(write, "wb"):
        start = time.monotonic()
        assert client.exec_pipe("exit 5", stdin=stdin).exit_code == 5
        assert time.monotonic() - start < 10


class Typed:
    """A keyboard: what is typed is read when the event comes."""

    def __init__(self, *lines: tuple[threading.Event, str]) -> None:
        self.lines = list(lines)

    def read(self, _: int) -> str:
        if not self.lines:
            return ""
        event, text = self.lines.pop(0)
        event.wait(30)
        return text


def test_exec_interactive(client: Client) -> None:
    resized, out = threading.Event(), io.StringIO()

    def sizes() -> Any:
        yield (30, 100)
        # The data is on its way, and input takes the same way.
        time.sleep(0.5)
        resized.set()

    keyboard: Any = Typed((resized, "go\n"))
    result = client.exec_interactive(
        "tty; stty size; read line; stty size; echo got $line; pwd; exit 6",
        stdin=keyboard,
        stdout=out,
        working_dir="/etc",
        rows=20,
        cols=60,
        resize=sizes(),
    )
    lines = out.getvalue().replace("\r\n", "\n").splitlines()
    assert result.exit_code == 6 and result.duration_ms >= 0
    assert lines[0].startswith("/dev/pts/")
    assert lines[1] in ("20 60", "30 100")
    assert lines[-3:] == ["30 100", "got go", "/etc"]


def test_an_interactive_program_without_input_is_not_ended(client: Client) -> None:
    out = io.StringIO()
    assert client.exec_interactive("stty size; sleep 1; id -u", stdout=out, user="1000").exit_code == 0
    assert out.getvalue().split() == ["24", "80", "1000"]


def test_commands_at_the_same_time(client: Client) -> None:
    def one(number: int) -> str:
        if number % 4:
            return client.exec(f"echo {number}").stdout
        out = io.StringIO()
        client.exec_pipe("cat", io.StringIO(f"{number}\n"), out)
        return out.getvalue()

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(one, range(60))) == [f"{number}\n" for number in range(60)]


# Files


def test_files(client: Client) -> None:
    client.write_file("/srv/deep/er/a.txt", "Hello, world!")
    client.write_file("/srv/deep/run.sh", b"#!/bin/sh\necho hi\n", mode=0o755)
    client.write_file("/srv/deep/empty", "", timeout=60)
    assert client.read_file("/srv/deep/er/a.txt") == b"Hello, world!"
    assert client.read_file("/srv/deep/empty", timeout=60) == b""
    assert client.exec("/srv/deep/run.sh").stdout == "hi\n"
    client.exec("ln -s er /srv/deep/link")
    found = {info.name: info for info in client.list_files("/srv/deep", timeout=60)}
    assert list(found) == ["empty", "er", "link", "run.sh"]
    assert (found["er"].is_dir, found["er"].mode) == (True, 0x8000_0000 | 0o755)
    assert (found["run.sh"].is_dir, found["run.sh"].mode, found["run.sh"].size) == (False, 0o755, 18)
    assert found["link"].mode & 0x0800_0000 and not found["link"].is_dir
    client.write_file("/srv/deep/er/a.txt", "short")
    assert client.read_file("/srv/deep/link/a.txt") == b"short"
    client.exec("mkdir /srv/void")
    assert client.list_files("/srv/void") == []
    binary = bytes(range(256)) * 4000
    client.write_file("/srv/binary", binary)
    assert client.read_file("/srv/binary") == binary


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.read_file("/nowhere"),
        lambda client: client.read_file("/etc"),
        lambda client: client.list_files("/nowhere"),
        lambda client: client.list_files("/etc/passwd"),
        lambda client: client.write_file("/etc/passwd/x", ""),
    ],
)
def test_what_files_refuse(client: Client, call: Any) -> None:
    with pytest.raises(RPCError) as caught:
        call(client)
    assert caught.value.is_file_error() and caught.value.message


def test_a_read_has_a_limit(client: Client) -> None:
    client.exec("dd if=/dev/zero of=/tmp/most bs=1M count=16")
    assert len(client.read_file("/tmp/most")) == 16 << 20
    client.exec("echo >> /tmp/most")
    with pytest.raises(RPCError, match="read_file exceeds 16777216 bytes"):
        client.read_file("/tmp/most")
    with pytest.raises(RPCError, match="read_file only supports regular files"):
        client.read_file("/dev/null")


# Hooks of this process


def test_hooks_on_the_clients_own_calls(home: homes.Home, alpine: str) -> None:
    rules = [
        VFSHookRule(name="no", ops=["write"], path="/secret/*", action_hook=lambda _: "block"),
        VFSHookRule(name="up", path="/up/*", mutate_hook=lambda request: f"{request.path} {request.size}"),
    ]
    with Client() as client:
        client.create(Sandbox(alpine).with_vfs_interception(VFSInterceptionConfig(rules=rules)).options())
        with pytest.raises(MatchlockError, match="vfs action hook blocked operation: op=write"):
            client.write_file("/secret/a", "x")
        client.write_file("/up/a", "abc")
        assert client.read_file("/up/a") == b"/up/a 3"
        assert client.exec("test -e /secret/a").exit_code == 1
    client.remove()


# Log


def test_log(home: homes.Home, alpine: str) -> None:
    with Client() as client:
        client.launch(Sandbox(alpine).with_entrypoint("sh", "-c", "echo from the entrypoint; sleep 100"))
        log = ""
        out = io.StringIO()
        with pytest.raises(TimeoutError):
            client.log_stream(stdout=out, timeout=2.0)
        log = client.log(timeout=60)
        assert "from the entrypoint" in log
        assert "from the entrypoint" in out.getvalue()
        assert "exec is not logged" not in (client.exec("echo exec is not logged").stdout and client.log())
    client.remove()


# Ports


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def get(address: str, port: int) -> bytes:
    with urllib.request.urlopen(f"http://{address}:{port}/a", timeout=30) as answer:
        return bytes(answer.read())


def test_port_forward(home: homes.Home, alpine: str) -> None:
    first, second, third = free_port(), free_port(), free_port()
    sandbox = (
        Sandbox(alpine)
        .with_no_network()
        .with_entrypoint("sh", "-c", "mkdir -p /www; echo page > /www/a; exec httpd -f -p 127.0.0.1:8080 -h /www")
        .with_image_config(ImageConfig(cmd=["ignored"]))
        .with_port_forward(first, 8080)
        .with_port_forward_addresses("127.0.0.1")
    )
    with Client() as client:
        client.launch(sandbox)
        wait = "until wget -qO /dev/null http://127.0.0.1:8080/a; do sleep 0.1; done"
        assert client.exec(wait, timeout=60).exit_code == 0
        assert get("127.0.0.1", first) == b"page\n"
        bindings = client.port_forward(f"{second}:8080", f"{third}:8080")
        found = [(binding.address, binding.local_port, binding.remote_port) for binding in bindings]
        assert found == [("127.0.0.1", second, 8080), ("127.0.0.1", third, 8080)]
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(lambda _: get("127.0.0.1", second), range(16))) == {b"page\n"}
        with pytest.raises(OSError):
            get("127.0.0.1", first)
        bindings = client.port_forward_with_addresses(["127.0.0.1", "127.0.0.2"], f"{first}:8080")
        assert [binding.address for binding in bindings] == ["127.0.0.1", "127.0.0.2"]
        assert get("127.0.0.2", first) == b"page\n"
        with pytest.raises(RPCError) as caught:
            client.port_forward_with_addresses(["127.0.0.1", "127.0.0.1"], f"{second}:8080")
        assert caught.value.is_vm_error() or caught.value.code == -32602
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(RPCError) as caught:
                client.port_forward(f"{taken.getsockname()[1]}:8080")
        assert caught.value.is_vm_error()
        assert caught.value.message.startswith("bind local port-forward listener")
        assert client.port_forward() == []
    with pytest.raises(OSError):
        get("127.0.0.1", first)
    client.remove()


def test_half_close_passes_both_ways(home: homes.Home, alpine: str) -> None:
    port = free_port()
    with Client() as client, ThreadPoolExecutor() as pool:
        client.create(CreateOptions(image=alpine, no_network=True))
        server = pool.submit(client.exec, "nc -l -p 9000 -e sh -c 'wc -c; echo done'", timeout=60)
        client.port_forward(f"{port}:9000")
        answer = b""
        for _ in range(100):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                try:
                    connection.sendall(b"x" * 100_000)
                    connection.shutdown(socket.SHUT_WR)
                    while piece := connection.recv(4096):
                        answer += piece
                except ConnectionError:
                    pass
            if answer:
                break
            time.sleep(0.1)
        assert answer.split() == [b"100000", b"done"]
        assert server.result().exit_code == 0
    client.remove()


# Making sandboxes


def test_every_option_of_the_builder_that_needs_no_network(home: homes.Home, alpine: str) -> None:
    sandbox = (
        Sandbox(alpine)
        .with_cpus(0.5)
        .with_memory(384)
        .with_disk_size(1024)
        .with_timeout(600)
        .with_workspace("/home/app/code")
        .with_env("ONE", "1")
        .with_env_map({"TWO": "2 2"})
        .with_hostname("box")
        .add_host("db.internal", "10.1.2.3")
        .with_user("app")
        .with_image_config(ImageConfig(working_dir="/home/app", env={"THREE": "3"}))
        .block_private_ips()
        .with_block_private_ips(True)
    )
    assert sandbox.options().cpus == 0.5
    with Client() as client:
        vm_id = client.launch(sandbox)
        assert re.fullmatch(r"vm-[0-9a-f]{8}", vm_id) and client.vm_id == vm_id
        assert client.exec("id -un; pwd; hostname").stdout == "app\n/home/app\nbox\n"
        assert client.exec("echo $ONE,$TWO,$THREE,$HOME").stdout == "1,2 2,3,/home/app\n"
        assert "10.1.2.3" in client.exec("grep db.internal /etc/hosts").stdout
        memory = int(client.exec("grep MemTotal /proc/meminfo").stdout.split()[1])
        assert 280_000 < memory < 384 * 1024
        assert client.exec("nproc").stdout == "1\n"
        disk = int(client.exec("df -k / | tail -1").stdout.split()[1])
        assert 700_000 < disk < 1100_000
        quota = client.exec("cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/*/cpu.max 2>/dev/null").stdout
        assert "50000 100000" in quota
    client.remove()


def test_options_of_the_network(home: homes.Home, alpine: str) -> None:
    sandbox = (
        Sandbox(alpine)
        .allow_host("203.0.113.10", "allowed.example:8080")
        .with_dns_servers("203.0.113.53")
        .with_network_mtu(1400)
    )
    with Client() as client:
        client.launch(sandbox)
        assert client.exec("cat /sys/class/net/eth0/mtu /etc/resolv.conf").stdout == "1400\nnameserver 203.0.113.53\n"
    client.remove()


def test_privileged(home: homes.Home, client: Client, alpine: str) -> None:
    bounding = "grep CapBnd /proc/self/status; grep NoNewPrivs /proc/self/status"
    plain = client.exec(bounding).stdout.split()
    with Client() as other:
        other.create(Sandbox(alpine).with_privileged().options())
        privileged = other.exec(bounding).stdout.split()
        assert other.exec("mkdir /m && mount -t tmpfs none /m").exit_code == 0
    other.remove()
    assert client.exec("mkdir /m && mount -t tmpfs none /m").exit_code != 0
    assert int(plain[1], 16) < int(privileged[1], 16)
    assert (plain[3], privileged[3]) == ("1", "0")


def test_create_starts_no_entrypoint_and_launch_does(home: homes.Home, alpine: str) -> None:
    sandbox = Sandbox(alpine).with_entrypoint("touch", "/tmp/started").with_image_config(ImageConfig(cmd=["/tmp/too"]))
    with Client() as client:
        first = client.create(sandbox.options())
        assert client.exec("ls /tmp").stdout == ""
        second = client.launch(sandbox)
        assert first != second and client.vm_id == second
        assert client.exec("ls /tmp").stdout == "started\ntoo\n"
        third = client.create(CreateOptions(image=alpine, launch_entrypoint=True))
        assert third != second
        # A client has one sandbox at a time; the one that was replaced takes a moment to end.
        deadline = time.monotonic() + 10
        while {first, second} & running_ids(home):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert third in running_ids(home)
    client.remove()


def running_ids(home: homes.Home) -> set[object]:
    return {vm["id"] for vm in home.vms() if vm["status"] == "running"}


def test_an_entrypoint_that_fails_fails_the_launch(home: homes.Home, alpine: str) -> None:
    before = running_ids(home)
    with Client() as client:
        with pytest.raises(RPCError) as caught:
            client.launch(Sandbox(alpine).with_entrypoint("/no/such/program"))
        assert caught.value.is_vm_error()
        assert "start image entrypoint: exit code 127" in caught.value.message
        assert running_ids(home) == before
        client.launch(Sandbox(alpine))
        assert client.exec("echo again").stdout == "again\n"
    client.remove()


def test_a_sandbox_has_an_end(home: homes.Home, alpine: str) -> None:
    if conftest.PUBLISHED:
        # Its `timeout_seconds` is remembered, as by the server that it was made for.
        with Client() as client:
            client.create(Sandbox(alpine).with_timeout(1).options())
            assert client.exec("sleep 3; echo on").stdout == "on\n"
        client.remove()
        return
    with Client() as client:
        client.create(Sandbox(alpine).with_timeout(10).options())
        start = time.monotonic()
        with pytest.raises(RPCError) as caught:
            client.exec("sleep 60")
        assert time.monotonic() - start < 20
        assert caught.value.code in (-32000, -32001, -32003)
        with pytest.raises(RPCError) as caught:
            client.exec("true")
        assert caught.value.is_vm_error()
    client.remove()


REFUSED = [
    (Sandbox("A").add_secret("KEY", "value", "api.example.com"), "network.secrets"),
    (Sandbox("A").add_secret_with_placeholder("KEY", "value", "ph", "api.example.com"), "network.secrets"),
    (Sandbox("A").with_network_interception(), "network.intercept"),
    (
        Sandbox("A").with_network_interception(
            NetworkInterceptionConfig(rules=[NetworkHookRule(phase="after", hook=lambda _: None)])
        ),
        "network.intercept",
    ),
]


@pytest.mark.parametrize(("sandbox", "part"), REFUSED)
def test_what_is_not_built_yet_is_refused_by_name(home: homes.Home, alpine: str, sandbox: Sandbox, part: str) -> None:
    sandbox.options().image = alpine
    with Client() as client:
        with pytest.raises(RPCError) as caught:
            client.launch(sandbox)
        assert caught.value.is_vm_error() and caught.value.message == f"{part}: not built yet"
        assert client.vm_id is None


def test_directories_of_the_host(home: homes.Home, alpine: str, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(f"{name}\n", encoding="utf-8")
    old = MountConfig(type="real_fs", host_path=str(tmp_path / "c"))
    sandbox = (
        Sandbox(alpine)
        .mount_host_dir("/workspace/a", str(tmp_path / "a"), owner_uid=1, owner_gid=2)
        .mount_host_dir_readonly("/elsewhere/b", str(tmp_path / "b"), owner_uid=4294967294)
        .mount_host_dir("/nobody", str(tmp_path / "b"), owner_uid=4294967295)
        .mount("/workspace/c", old)
    )
    with Client() as client:
        client.launch(sandbox)
        assert client.exec("pwd; ls; cat */file").stdout == "/workspace\na\nc\na\nc\n"
        assert client.exec("stat -c %u:%g a/file; stat -c %u /elsewhere/b/file").stdout == "1:2\n4294967294\n"
        assert client.exec("echo x > /elsewhere/b/new").exit_code != 0
        # Linux has no such user, and shows another.
        assert client.exec("stat -c %u /nobody/file; cat /nobody/file").stdout == "65534\nb\n"
        client.write_file("/workspace/a/made", "by the client", mode=0o640)
        assert client.exec("mkdir c/d && mv a/made a/moved && echo guest > c/d/made").exit_code == 0
        (tmp_path / "c" / "later").write_text("later\n", encoding="utf-8")
        assert client.read_file("/workspace/c/later") == b"later\n"
        assert [file.name for file in client.list_files("/workspace/a")] == ["file", "moved"]
    assert (tmp_path / "a" / "moved").read_text(encoding="utf-8") == "by the client"
    assert (tmp_path / "c" / "d" / "made").read_text(encoding="utf-8") == "guest\n"
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["file"]
    client.remove()


def test_files_that_stay_with_the_sandbox(home: homes.Home, alpine: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of the host\n", encoding="utf-8")
    sandbox = (
        Sandbox(alpine)
        .with_workspace("/w")
        .mount_overlay("/w", str(tmp_path))
        .mount_memory("/w/memory/inner")
        .mount_host_dir("/w/memory/inner/host", str(tmp_path))
    )
    with Client() as client:
        client.launch(sandbox)
        assert client.exec("pwd; ls; cat file memory/inner/host/file").stdout == (
            "/w\nfile\nmemory\nof the host\nof the host\n"
        )
        client.write_file("/w/file", "of the guest\n")
        client.write_file("/w/memory/inner/made", "in memory\n")
        assert client.exec("rm -r memory/inner/made && ls memory/inner && cat file").stdout == "host\nof the guest\n"
    assert (tmp_path / "file").read_text(encoding="utf-8") == "of the host\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    client.remove()


def test_rules_and_hooks_of_files(home: homes.Home, alpine: str, tmp_path: Path) -> None:
    """Rules hold for programs and for the client's own calls; hooks hear of both, before the call returns."""
    events: list[tuple[str, str, int, int]] = []
    dangerous: list[tuple[str, str]] = []
    safe: list[str] = []
    ran = threading.Event()
    with Client() as client:

        def hear(_: Client, event: VFSHookEvent) -> None:
            dangerous.append((event.op, event.path))
            events.append((event.op, event.path, event.size, event.mode))

        def after(event: VFSHookEvent) -> None:
            # A write of the hook's own does not run it again.
            client.write_file("/workspace/watched-log", event.path)
            safe.append(event.path)
            ran.set()

        rules = [
            VFSHookRule(name="keep", ops=["remove", "rename"], path="/workspace/kept*", action="block"),
            VFSHookRule(name="no-write", phase="before", ops=["write"], path="/workspace/locked/*", action="block"),
            VFSHookRule(name="below", ops=["mkdir"], path="/workspace/*", action="block"),
            VFSHookRule(name="hear", phase="after", ops=["write", "create", "remove"], dangerous_hook=hear),
            VFSHookRule(name="after", phase="after", ops=["write"], path="/workspace/watched*", hook=after),
        ]
        (tmp_path / "locked").mkdir()
        (tmp_path / "locked" / "file").write_text("locked", encoding="utf-8")
        sandbox = Sandbox(alpine).mount_host_dir("/workspace", str(tmp_path))
        client.launch(sandbox.with_vfs_interception(VFSInterceptionConfig(rules=rules)))

        client.write_file("/workspace/kept", "12345")
        assert client.exec("rm kept; mv kept other; cat kept").stdout == "12345"
        assert "Operation not permitted" in client.exec("rm kept").stderr
        assert client.exec("mkdir d").exit_code != 0
        assert client.exec("mkdir locked/d && rmdir locked/d").exit_code == 0
        assert client.exec("echo x >> locked/file").exit_code != 0
        with pytest.raises(RPCError) as caught:
            client.write_file("/workspace/locked/new", "x")
        assert caught.value.is_file_error(), caught.value
        assert (tmp_path / "locked" / "file").read_text(encoding="utf-8") == "locked"
        assert client.exec("echo 123 > made && rm made").exit_code == 0
        assert client.read_file("/workspace/kept") == b"12345"
        assert client.exec("echo x > watched").exit_code == 0
        assert ran.wait(30)
        # Hooks run on threads of their own: they end soon after the call.
        deadline = time.monotonic() + 30
        while ("write", "/workspace/watched-log") not in dangerous and time.monotonic() < deadline:
            time.sleep(0.05)
        assert ("write", "/workspace/watched-log") in dangerous, dangerous
        assert safe == ["/workspace/watched"]
        assert ("write", "/workspace/kept", 5, 0o644) in events, events
        assert ("create", "/workspace/made", 0, 0o644) in events, events
        assert ("write", "/workspace/made", 4, 0o644) in events, events
        assert ("remove", "/workspace/made", 0, 0) in events, events
        assert ("remove", "/workspace/kept") not in dangerous, "what is blocked is not told"
        assert ("write", "/workspace/locked/new") not in dangerous
        assert all(op in ("write", "create", "remove") for op, _ in dangerous)
    assert (tmp_path / "kept").read_text(encoding="utf-8") == "12345"
    client.remove()


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (VFSHookRule(action="blok"), "rules[0]: unknown action 'blok'"),  # type: ignore[arg-type]
        (VFSHookRule(name="n", ops=["wriet"], action="block"), "rules[0] ('n'): unknown operation 'wriet'"),  # type: ignore[list-item]
        (VFSHookRule(path="/w/[", action="block"), "rules[0]: path '/w/[': its [...] is empty"),
        (VFSHookRule(path="*.txt", action="block"), "rules[0]: path '*.txt' matches nothing"),
        (VFSHookRule(phase="after", action="block"), "rules[0]: phase 'after' cannot block"),
    ],
)
def test_rules_that_cannot_be(home: homes.Home, alpine: str, rule: VFSHookRule, text: str) -> None:
    sandbox = Sandbox(alpine).mount_memory("/w").with_vfs_interception(VFSInterceptionConfig(rules=[rule]))
    with Client() as client, pytest.raises(RPCError) as caught:
        client.create(sandbox.options())
    message = caught.value.message.replace('"', "'")
    assert caught.value.code == -32602 and f"invalid configuration: vfs.interception.{text}" in message, message


@pytest.mark.parametrize(
    ("mount", "code", "text"),
    [
        (MountConfig(type="nfs"), -32602, "invalid configuration: /w: unknown mount type 'nfs'"),
        (MountConfig(owner_uid=1), -32602, "/w: owner_uid/owner_gid are only supported for host_fs mounts"),
        (MountConfig(type="overlay"), -32000, "/w: host_path is required for overlay mounts"),
        (MountConfig(type="host_fs", host_path="/no/such"), -32000, "No such file or directory"),
        (MountConfig(type="host_fs", host_path="/"), -32000, "the whole host is not shared"),
    ],
)
def test_mounts_that_cannot_be(home: homes.Home, alpine: str, mount: MountConfig, code: int, text: str) -> None:
    with Client() as client, pytest.raises(RPCError) as caught:
        client.create(Sandbox(alpine).mount("/w", mount).options())
    assert caught.value.code == code and text in caught.value.message.replace('"', "'"), caught.value
    with pytest.raises(ValueError, match="owner_uid"):
        MountConfig(type="host_fs", host_path="/", owner_uid=1 << 32)


def test_what_cannot_be(home: homes.Home, alpine: str) -> None:
    with Client() as client:
        for sandbox, text in (
            (Sandbox(alpine).with_workspace("relative"), "invalid configuration: "),
            (Sandbox(alpine).add_host("a b", "1.2.3.4"), "invalid configuration: "),
            (
                Sandbox(alpine).with_vfs_interception(
                    VFSInterceptionConfig(rules=[VFSHookRule(phase="after", hook=lambda _: None)])
                ),
                "vfs.interception requires at least one vfs.mounts entry",
            ),
        ):
            with pytest.raises(RPCError) as caught:
                client.create(sandbox.options())
            assert caught.value.code == -32602 and text in caught.value.message, caught.value
        for sandbox in (
            Sandbox("127.0.0.1:1/no-such-image:nowhere"),
            Sandbox(alpine).with_kernel("file:///no/such/kernel"),
            Sandbox(alpine).with_cpus(10_000),
        ):
            with pytest.raises(RPCError) as caught:
                client.create(sandbox.options())
            assert caught.value.is_vm_error(), caught.value
        unset = Sandbox(alpine).allow_private_ips().unset_block_private_ips()
        client.create(unset.options())
        assert client.exec("echo fine").stdout == "fine\n"
    client.remove()


# Life


def test_nothing_before_create(home: homes.Home, config: Config) -> None:
    with Client(config) as client:
        for call in (lambda: client.exec("true"), client.log, lambda: client.read_file("/a")):
            with pytest.raises(RPCError, match=r"\[-32000\] VM not created"):
                call()
        assert client.vm_id is None
    with pytest.raises(MatchlockError):
        client.exec("true")
    client.remove()


def test_start_close_remove(home: homes.Home, alpine: str) -> None:
    client = Client()
    client.start()
    client.start()
    vm_id = client.launch(Sandbox(alpine))
    assert client.exec("echo hello").stdout == "hello\n"
    assert [vm["status"] for vm in home.vms() if vm["id"] == vm_id] == ["running"]
    client.close(timeout=10)
    client.close()
    home_processes(home)
    assert [vm["status"] for vm in home.vms() if vm["id"] == vm_id] == ["stopped"]
    client.remove()
    assert [vm for vm in home.vms() if vm["id"] == vm_id] == []
    with pytest.raises(subprocess.CalledProcessError):
        client.remove()


def home_processes(home: homes.Home) -> None:
    """Waits until only the sandboxes that are meant to run have processes."""
    running = {str(vm["pid"]) for vm in home.vms() if vm["status"] == "running"}
    if not running:
        home.assert_no_process()


def test_close_does_not_wait_for_what_is_under_way(home: homes.Home, alpine: str) -> None:
    client = Client()
    client.start()
    client.launch(Sandbox(alpine))
    with ThreadPoolExecutor() as pool:
        under_way = [
            pool.submit(client.exec, "sleep 100"),
            pool.submit(client.exec_pipe, "sleep 100"),
            pool.submit(client.log_stream),
        ]
        time.sleep(0.5)
        start = time.monotonic()
        client.close()
        assert time.monotonic() - start < 3.0
        for future in under_way:
            with pytest.raises(MatchlockError):
                future.result(timeout=10)
    client.remove()


def test_a_killed_server_leaves_nothing(home: homes.Home, alpine: str) -> None:
    client = Client()
    client.start()
    vm_id = client.launch(Sandbox(alpine))
    pid = next(int(str(vm["pid"])) for vm in home.vms() if vm["id"] == vm_id)
    with ThreadPoolExecutor() as pool:
        under_way = pool.submit(client.exec, "sleep 100")
        time.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(MatchlockError, match="Matchlock process closed unexpectedly"):
            under_way.result(timeout=10)
    with pytest.raises(MatchlockError):
        client.exec("true")
    client.close()
    assert [vm["status"] for vm in home.vms() if vm["id"] == vm_id] == ["crashed"]
    client.remove()
    assert [vm for vm in home.vms() if vm["id"] == vm_id] == []


# Volumes


def test_volumes(home: homes.Home) -> None:
    client = Client()
    assert client.volume_list() == []
    volume = client.volume_create("data", size_mb=16)
    assert (volume.name, volume.size) == ("data", "16.0 MB")
    assert os.path.getsize(volume.path) == 16 << 20
    assert client.volume_list() == [volume]
    with pytest.raises(subprocess.CalledProcessError):
        client.volume_create("data", size_mb=16)
    with pytest.raises(subprocess.CalledProcessError):
        client.volume_create("../data", size_mb=16)
    client.volume_remove("data")
    assert client.volume_list() == [] and not os.path.exists(volume.path)
    with pytest.raises(subprocess.CalledProcessError):
        client.volume_remove("data")


# All of it

NEW = {
    *(f"Client.{name}" for name in ("exec_detached", "processes", "upload", "download", "stat", "mkdir")),
    *(f"Client.{name}" for name in ("remove_file", "rename", "watch")),
    *(f"Client.{name}" for name in ("add_mount", "remove_mount", "mounts", "allow_list_add", "allow_list_delete")),
    *(f"Sandbox.{name}" for name in ("deny_host", "passthrough_host", "with_network_arrival")),
    "Sandbox.with_disk",
    "Sandbox.with_init",
}


def test_every_call_was_made(request: pytest.FixtureRequest) -> None:
    ran = {item.name.split("[")[0] for item in request.session.items}
    if not {name for name in globals() if name.startswith("test_")} <= ran:
        pytest.skip("not all tests of this file were asked for")
    all_calls = {f"{cls.__name__}.{name}" for cls in (Client, Sandbox) for name in conftest.public(cls)}
    assert all_calls - NEW <= conftest.CALLED, all_calls - NEW - conftest.CALLED
    assert [name for name in matchlock.__all__ if not hasattr(matchlock, name)] == []
