"""The server under real sudo, which is the user's and keeps a process that is root's: end of input is the contract.

The user, and what sudo lets him do, exist in private mounts of /etc/passwd, /etc/shadow and /etc/sudoers only. Needs
root, sudo and util-linux.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import conftest
import homes

UID = 61_234
USER = "matchlock-test"
PACKAGE = Path(__file__).resolve().parent.parent.parent / "sdk" / "python" / "src"

PRELUDE = r"""
import json, os, signal, subprocess, sys, time
from matchlock import Client, Config, Sandbox
config = Config(binary_path=os.environ["MATCHLOCK_BIN"], use_sudo=True)
def listed():
    done = subprocess.run([config.binary_path, "list", "--json"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)
def vms():
    return [(vm["id"], vm["status"]) for vm in listed()]
def owners():
    return {os.lstat(os.path.join(top, name)).st_uid for top, directories, files in os.walk(os.path.expanduser("~"))
            for name in directories + files}
assert os.getuid() != 0
client = Client(config)
client.start()
sudo = client._transport._process
vm = client.launch(Sandbox("alpine:latest").with_memory(256))
assert client.exec("echo up").stdout == "up\n"
assert vms() == [(vm, "running")], vms()
server = listed()[0]["pid"]
assert server != sudo.pid
# The server is this user's, though sudo's own process is not.
os.kill(server, 0)
try:
    os.listdir(f"/proc/{server}/fd")
    raise SystemExit("a process that was root's can be looked into")
except PermissionError:
    pass
status = open(f"/proc/{server}/status").read()
assert f"Uid:\t{os.getuid()}\t{os.getuid()}\t{os.getuid()}\t{os.getuid()}\n" in status, status
"""

CLOSES = """
client.close(timeout=10)
assert sudo.wait(10) == 0
assert vms() == [(vm, "stopped")], vms()
client.remove()
assert vms() == []
assert owners() == {os.getuid()}, owners()
"""

HANGS_UP = """
client._transport._stdin.close()
assert sudo.wait(20) == 0
assert vms() == [(vm, "stopped")], vms()
client.remove()
assert vms() == []
"""

SUDO_IS_KILLED = """
os.kill(sudo.pid, signal.SIGKILL)
sudo.wait(10)
assert vms() == [(vm, "running")], "only sudo was killed"
client.close()
deadline = time.monotonic() + 20
while vms() != [(vm, "stopped")]:
    assert time.monotonic() < deadline, vms()
    time.sleep(0.05)
client.remove()
"""

IS_KILLED = """
os.kill(os.getpid(), signal.SIGKILL)
"""

FORKS = """
sleeper = os.fork()
if sleeper == 0:
    # A reader of this program's output need not wait for the child.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nowhere, descriptor)
    time.sleep(60)
    os._exit(0)
print(sleeper, flush=True)
"""

LOOKS = """
import json, os, subprocess
program = os.environ["MATCHLOCK_BIN"]
listed = subprocess.run([program, "list", "--json"], capture_output=True, text=True, check=True)
for vm in json.loads(listed.stdout):
    assert vm["status"] in ("stopped", "crashed"), vm
    subprocess.run([program, "rm", vm["id"]], check=True, capture_output=True)
assert os.listdir(os.path.expanduser("~/.matchlock/vms")) == []
"""


class Place:
    """The user's view of the host."""

    def __init__(self, home: homes.Home, directory: Path) -> None:
        self.home = home
        passwd, shadow, sudoers = (directory / name for name in ("passwd", "shadow", "sudoers"))
        line = f"{USER}:x:{UID}:{UID}::{home.path}:/bin/sh\n"
        passwd.write_text(Path("/etc/passwd").read_text() + line)
        # Without secure_path the user's PATH stays, and with it the mark that processes are found by.
        keep = 'Defaults env_reset\nDefaults env_keep += "PATH MATCHLOCK_MACHINE"\n'
        sudoers.write_text(f"{keep}{USER} ALL=(ALL) NOPASSWD: ALL\nroot ALL=(ALL) ALL\n")
        # An account that is not in there is one that has expired.
        shadow.write_text(Path("/etc/shadow").read_text() + f"{USER}:*:19000:0:99999:7:::\n")
        passwd.chmod(0o644)
        shadow.chmod(0o600)
        sudoers.chmod(0o440)
        self.setup = (
            "mount --make-rprivate / && "
            f"mount --bind {passwd} /etc/passwd && mount --bind {shadow} /etc/shadow && "
            f"mount --bind {sudoers} /etc/sudoers && "
            f'exec setpriv --reuid {UID} --regid {UID} --clear-groups "$@"'
        )

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs something as the user."""
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", self.setup, "sh", *command],
            cwd="/",
            env={**self.home.env(), "PYTHONPATH": str(PACKAGE), "USER": USER, "LOGNAME": USER},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )


@pytest.fixture(scope="module")
def place(home: homes.Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A user with sudo, in a home of his own."""
    for needed in ("sudo", "unshare", "setpriv"):
        if shutil.which(needed) is None:
            pytest.skip(f"{needed} is not installed")
    if os.geteuid() != 0:
        pytest.skip("making a user takes root")
    conftest.provide(home, "alpine:latest")
    # Behind sudo the program touches the user's files as the user, so the cache has to be his own.
    home.own_cache()
    home.path.chmod(0o755)
    subprocess.run(["chown", "-hR", f"{UID}:{UID}", str(home.path)], check=True)
    yield Place(home, tmp_path_factory.mktemp("etc"))


@pytest.fixture(scope="module")
def python(place: Place) -> str:
    """A Python that the user can run, with the program and the package in his reach."""
    if place.run("test", "-x", homes.program()).returncode != 0:
        pytest.skip(f"an ordinary user cannot reach {homes.program()}")
    for candidate in (sys.executable, "/usr/bin/python3"):
        if place.run(candidate, "-c", "import sys, matchlock; sys.exit(sys.version_info < (3, 10))").returncode == 0:
            return candidate
    pytest.skip("an ordinary user can reach no Python of 3.10 or later, or not the package")


@pytest.mark.parametrize("end", [CLOSES, HANGS_UP, SUDO_IS_KILLED], ids=["closes", "hangs up", "kills sudo"])
def test_a_client_that_ends(place: Place, python: str, end: str) -> None:
    done = place.run(python, "-c", PRELUDE + end)
    assert done.returncode == 0, done.stderr
    place.home.assert_no_process()
    assert place.run(python, "-c", LOOKS).returncode == 0


@pytest.mark.parametrize("end", [CLOSES, IS_KILLED], ids=["closes", "is killed"])
def test_a_client_with_a_forked_child(place: Place, python: str, end: str) -> None:
    done = place.run(python, "-c", PRELUDE + FORKS + end)
    assert done.returncode == (0 if end is CLOSES else -signal.SIGKILL), done.stderr
    child = int(done.stdout)
    try:
        deadline = time.monotonic() + homes.LINGER_SECONDS
        while left := [(pid, name) for pid, name in place.home.processes() if pid != child]:
            assert time.monotonic() < deadline, f"still there: {left}"
            time.sleep(0.02)
        assert child in [pid for pid, _ in place.home.processes()]
    finally:
        os.kill(child, signal.SIGKILL)
    place.home.assert_no_process()
    assert place.run(python, "-c", LOOKS).returncode == 0


def test_a_client_that_is_killed(place: Place, python: str) -> None:
    done = place.run(python, "-c", PRELUDE + IS_KILLED)
    assert done.returncode == -9, done.stderr
    place.home.assert_no_process()
    looked = place.run(python, "-c", LOOKS)
    assert looked.returncode == 0, looked.stderr
    listed = place.run(homes.program(), "list", "--json")
    assert json.loads(listed.stdout) == []
