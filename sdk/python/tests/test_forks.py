"""Children made by fork: a server ends with its client however long they live; they may not use the client."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from helpers import eventually

# Children wait for the end of their input, which is that of the test.
PRELUDE = """
import asyncio, io, multiprocessing, os, signal, subprocess, sys, threading, time, warnings
from matchlock import AsyncClient, Client, Config, CreateOptions, MatchlockError
warnings.simplefilter("ignore", DeprecationWarning)
config = Config(sys.argv[1])

def lives():
    os.close(1)
    os.read(0, 1)
    os._exit(0)

def fork():
    child = os.fork()
    return child or lives()

def process():
    child = multiprocessing.get_context("fork").Process(target=lives)
    child.start()
    return child.pid

def says(text, status=0):
    print(text, flush=True)
    os._exit(status)

def refused(call):
    try:
        call()
    except MatchlockError as error:
        assert str(error) == "this client belongs to the process that made it", error
    else:
        raise AssertionError("it was not refused")
"""

THREADED = """
client = Client(config)
client.start()
client.exec("echo x")
server = client._transport._process
child = {fork}()
print(server.pid, child, flush=True)
{end}
"""

ASYNCIO = """
async def main():
    client = AsyncClient(config)
    await client.start()
    await client.exec("echo x")
    server = client._transport._process
    child = {fork}()
    print(server.pid, child, flush=True)
    {end}
asyncio.run(main())
"""

CLOSES = """
start = time.monotonic()
{wait}client.close()
took = time.monotonic() - start
says(f"{{server.returncode}} {{took}}")
"""


@contextmanager
def script(program: str, text: str, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A program that uses the SDK."""
    command = [sys.executable, "-c", PRELUDE + text, program, *more]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def line(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


clients = pytest.mark.parametrize("client", [THREADED, ASYNCIO], ids=["threaded", "asyncio"])


@clients
@pytest.mark.parametrize("fork", ["fork", "process"])
@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)"], ids=["killed", "exits"])
def test_a_server_ends_with_its_client_while_a_child_lives(program: str, client: str, fork: str, end: str) -> None:
    with script(program, client.format(fork=fork, end=end)) as process:
        server, child = line(process)
        eventually(lambda: not alive(server))
        assert alive(child)


@clients
@pytest.mark.parametrize("fork", ["fork", "process"])
def test_a_child_does_not_hold_up_close(program: str, client: str, fork: str) -> None:
    wait = "await " if client is ASYNCIO else ""
    end = CLOSES.format(wait=wait)
    if wait:
        end = end.replace("\n", "\n    ")
    with script(program, client.format(fork=fork, end=end)) as process:
        _, child = line(process)
        status, took = line(process)
        assert status == "0" and float(took) < 1
        assert alive(child)


def succeeds(program: str, text: str) -> None:
    with script(program, text) as process:
        assert process.wait(30) == 0


def test_a_child_is_told_that_the_client_is_not_its_own(program: str) -> None:
    # Other threads hold locks at the moment of the fork; in the child nobody would ever leave them.
    succeeds(
        program,
        """
with Client(config) as client:
    client.create(CreateOptions(image="i1"))
    busy = [threading.Thread(target=lambda: [client.exec("echo x") for _ in range(300)]) for _ in range(4)]
    for thread in busy:
        thread.start()
    process = client.exec_detached("x")
    with client.watch("/w") as watch:
        for _ in range(30):
            child = os.fork()
            if child == 0:
                break
            assert os.waitpid(child, 0)[1] == 0
        if child == 0:
            for call in (
                client.start, client.create, process.wait, process.poll, watch.next, client.log,
                lambda: client.exec("x"), lambda: client.write_file("/a", "x"), lambda: client.read_file("/a"),
                lambda: client.exec_pipe("x"), lambda: client.watch("/"), lambda: client.port_forward("1:2"),
            ):
                refused(call)
    if child == 0:
        client.close()
if child == 0:
    # An ordinary end, at which all objects are collected.
    sys.exit(0)
for thread in busy:
    thread.join()
""",
    )


def test_a_child_that_comes_out_of_a_call(program: str) -> None:
    succeeds(
        program,
        """
class Forks(io.StringIO):
    def write(self, text):
        self.child = os.fork()
        return len(text)
out = Forks()
with Client(config) as client:
    try:
        client.exec_stream("echo x", stdout=out)
    except MatchlockError as error:
        assert out.child == 0 and "belongs to the process" in str(error)
        sys.exit(0)
    assert os.waitpid(out.child, 0)[1] == 0
    assert client.exec("echo on").stdout == "on"
""",
    )


def test_a_child_of_a_loop(program: str) -> None:
    succeeds(
        program,
        """
async def in_child(client, watch):
    for call in (client.start, client.create, watch.next, client.log, lambda: client.exec("x")):
        try:
            await call()
        except MatchlockError as error:
            assert "belongs to the process" in str(error)
        else:
            raise AssertionError("it was not refused")
    watch.close()
    await client.close()

async def main():
    async with AsyncClient(config) as client:
        await client.create(CreateOptions(image="i1"))
        async with client.watch("/w") as watch:
            child = os.fork()
            if child == 0:
                asyncio.set_event_loop(None)
                code = 1
                try:
                    threading.Thread(target=lambda: None).start()
                    asyncio.new_event_loop().run_until_complete(in_child(client, watch))
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitpid(child, 0)[1] == 0
            assert (await watch.next(5)).kind == "created"
            assert (await client.exec("echo on")).stdout == "on"
asyncio.run(main())
""",
    )


def test_a_fork_in_the_middle_of_a_start(program: str) -> None:
    with script(
        program,
        """
import _posixsubprocess
spawning, spawn = threading.Event(), _posixsubprocess.fork_exec
def slow(*args):
    spawning.set()
    time.sleep(0.2)
    return spawn(*args)
# Python 3.10 has it by the first name, later ones by the second.
_posixsubprocess.fork_exec = subprocess._fork_exec = slow
subprocess._USE_POSIX_SPAWN = False
client = Client(config)
thread = threading.Thread(target=client.start, daemon=True)
thread.start()
spawning.wait()
child = fork()
thread.join(5)
reader, = (thread for thread in threading.enumerate() if thread.name == "matchlock-reader")
client.exec("echo x")
start = time.monotonic()
client.close()
# It reads to the end of the server's output, and that of no child.
reader.join(5)
says(f"{client._transport._process.returncode} {time.monotonic() - start}")
""",
    ) as process:
        status, took = line(process)
        assert status == "0" and float(took) < 1


def test_a_client_that_was_not_started_may_be_used_by_a_child(program: str) -> None:
    succeeds(
        program,
        """
client = Client(config)
child = os.fork()
if child == 0:
    client.close()
    with client:
        says(client.exec("echo x").stdout, 0)
assert os.waitpid(child, 0)[1] == 0
with client:
    assert client.exec("echo x").stdout == "x"
""",
    )
