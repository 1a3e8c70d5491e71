"""A program that forks, with a real guest: the sandbox ends with its client, however long a child lives.

Not here: what a child may still do (the package's own tests).
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

import homes

PRELUDE = """
import os, signal, time, warnings
from matchlock import Client, Sandbox
warnings.simplefilter("ignore", DeprecationWarning)
client = Client()
client.start()
client.launch(Sandbox("alpine:latest").with_memory(256))
assert client.exec("echo up").stdout == "up\\n"
child = os.fork()
if child == 0:
    os.close(1)
    os.read(0, 1)
    os._exit(0)
print(child, flush=True)
"""

IS_KILLED = """
os.kill(os.getpid(), signal.SIGKILL)
"""

CLOSES = """
start = time.monotonic()
client.close(timeout=10)
assert client._transport._process.returncode == 0
print(time.monotonic() - start, flush=True)
client.remove()
"""


@pytest.mark.parametrize("end", [IS_KILLED, CLOSES], ids=["is killed", "closes"])
def test_a_sandbox_ends_while_a_forked_child_lives(home: homes.Home, alpine: str, end: str) -> None:
    command = [sys.executable, "-c", PRELUDE + end]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=home.env()) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        deadline = time.monotonic() + homes.LINGER_SECONDS
        if end is CLOSES:
            assert float(process.stdout.readline()) < 5
        else:
            assert process.wait(homes.LINGER_SECONDS) == -signal.SIGKILL
        while left := [(pid, name) for pid, name in home.processes() if pid not in (child, process.pid)]:
            assert time.monotonic() < deadline, f"still there: {left}"
            time.sleep(0.02)
        assert child in [pid for pid, _ in home.processes()]
