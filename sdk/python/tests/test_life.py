"""The server process: how it is started, and how it ends, whatever it does."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers import descriptors, eventually, threads

from matchlock import Client, CommandError, Config, CreateOptions, MatchlockError, VolumeInfo


def test_the_program_comes_from_the_environment(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATCHLOCK_BIN", program)
    with Client() as client:
        assert client.exec("echo hi").stdout == "hi"
    monkeypatch.setenv("MATCHLOCK_BIN", "/nowhere/matchlock")
    with pytest.raises(FileNotFoundError):
        Client().start()
    # A configuration says it all: the environment does not count then.
    with Client(Config(binary_path=program)) as client:
        assert client.exec("echo hi").stdout == "hi"


def test_the_program_comes_from_the_path(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MATCHLOCK_BIN", raising=False)
    monkeypatch.setenv("PATH", f"{Path(program).parent}:{os.environ['PATH']}")
    with Client() as client:
        assert client.exec("echo hi").stdout == "hi"


def test_sudo(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin = tmp_path / "bin"
    bin.mkdir()
    seen = tmp_path / "arguments"
    (bin / "sudo").write_text(f'#!/bin/sh\necho "$*" >> {seen}\nexec "$@"\n')
    (bin / "sudo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    with Client(Config(program, use_sudo=True)) as client:
        client.create(CreateOptions(image="i1"))
    client.remove()
    client.volume_list()
    # Only the server runs as root.
    assert seen.read_text() == f"{program} rpc\n"


def test_starting_twice_starts_once(program: str) -> None:
    client = Client(Config(program))
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda _: client.start(), range(20)))
    assert threads().count("matchlock-reader") == 1
    client.close()


def test_nothing_works_before_start_and_after_close(program: str) -> None:
    client = Client(Config(program))
    with pytest.raises(MatchlockError, match="^Matchlock process not running$"):
        client.exec("echo x")
    with client:
        client.create(CreateOptions(image="i1"))
    for call in (lambda: client.exec("x"), client.log, lambda: client.watch("/")):
        with pytest.raises(MatchlockError, match="^Matchlock process not running$"):
            call()
    assert client.vm_id == "vm-00000001"
    client.close()


def test_closing_before_start_changes_nothing(program: str) -> None:
    client = Client(Config(program))
    client.close()
    with client:
        assert client.exec("echo x").stdout == "x"


@pytest.mark.parametrize(("timeout", "error"), [("x", TypeError), (math.nan, ValueError)])
def test_a_close_that_is_refused_can_be_made_again(program: str, timeout: Any, error: type[Exception]) -> None:
    with Client(Config(program)) as client:
        with pytest.raises(error):
            client.close(timeout)
        assert client.exec("echo on").stdout == "on"
        server = client._transport
        client.close()
    assert server is not None and server._process.returncode == 0


def test_close_says_when_it_wants_an_answer(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = tmp_path / "trace"
    monkeypatch.setenv("FAKE_TRACE", str(trace))
    for timeout, said in ((0, 2.0), (0.5, 0.5), (-1, 2.0), (math.inf, 1e9), (1e12, 1e9)):
        with Client(Config(program)) as client:
            client.close(timeout=timeout)
        request = json.loads(trace.read_text())[-1]
        assert (request["method"], request["params"]) == ("close", {"timeout_seconds": said})


def test_a_server_that_does_not_close_is_killed(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_HANG", "1")
    with Client(Config(program)) as client:
        client.exec("echo x")
        start = time.monotonic()
        client.close(timeout=0.1)
        assert 1.1 <= time.monotonic() - start < 5
    eventually(lambda: threads() == [])


def test_a_server_that_reads_nothing_holds_up_neither_writers_nor_close(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_DEAF", "1")
    client = Client(Config(program))
    client.start()
    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(client.write_file, "/a", b"x" * (3 << 20)) for _ in range(4)]
        time.sleep(0.2)
        start = time.monotonic()
        client.close(timeout=0.1)
        assert time.monotonic() - start < 5
        for writer in writers:
            with pytest.raises(MatchlockError):
                writer.result()


def test_close_does_not_wait_for_requests(program: str) -> None:
    with Client(Config(program)) as client, ThreadPoolExecutor() as pool:
        hung = pool.submit(client.exec, "mute")
        eventually(lambda: "mute" in client.exec("requests").stdout)
        start = time.monotonic()
        client.close()
        assert time.monotonic() - start < 2
        with pytest.raises(MatchlockError, match="closed unexpectedly"):
            hung.result()


def test_nothing_is_left_of_a_client(program: str) -> None:
    def one() -> None:
        with Client(Config(program)) as client:
            client.exec("echo x")

    one()
    eventually(lambda: threads() == [])
    before = descriptors()
    for _ in range(10):
        one()
    eventually(lambda: threads() == [])
    assert descriptors() == before


def test_a_killed_server_is_noticed_at_once(program: str) -> None:
    with Client(Config(program)) as client:
        pid = int(client.exec("echo x").stdout and _server(client))
        killer = threading.Timer(0.05, os.kill, (pid, signal.SIGKILL))
        killer.start()
        with pytest.raises(MatchlockError, match="closed unexpectedly"):
            client.exec("sleep 30")
        start = time.monotonic()
        client.close()
        assert time.monotonic() - start < 0.5


def _server(client: Client) -> int:
    transport = client._transport
    assert transport is not None
    return transport._process.pid


def test_remove_is_a_command(program: str) -> None:
    client = Client(Config(program))
    client.remove()
    with client:
        client.create(CreateOptions(image="ix"))
    with pytest.raises(CommandError, match="VM vm-0000000x not found") as caught:
        client.remove()
    # It is what earlier releases raised, too.
    assert isinstance(caught.value, subprocess.CalledProcessError) and caught.value.returncode == 1
    assert isinstance(caught.value, MatchlockError)


def test_volumes_are_commands(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(Config(program))
    volume = VolumeInfo(name="data", size="16.0 MB", path="/v/data.ext4")
    assert client.volume_create(" data ", 16) == volume
    assert client.volume_create("data").size == "10240.0 MB"
    client.volume_remove("data")
    assert client.volume_list() == []
    monkeypatch.setenv("FAKE_VOLUMES", '[{"name":"data","size":"16.0 MB","path":"/v/data.ext4"}]')
    assert client.volume_list() == [volume]
    for output in ("", "{}", "[7]", '[{"name":"a"}]'):
        monkeypatch.setenv("FAKE_VOLUMES", output)
        with pytest.raises(MatchlockError, match="failed to parse volume list output"):
            client.volume_list()
    with pytest.raises(MatchlockError, match="volume name is required"):
        client.volume_create(" ")
    with pytest.raises(MatchlockError, match="volume size must be > 0"):
        client.volume_create("a", 0)
    with pytest.raises(MatchlockError, match="volume name is required"):
        client.volume_remove("")
