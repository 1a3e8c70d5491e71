"""Kills a process of a sandbox at a random moment of its life, again and again, and checks what is left.

    kill.py N [--seed S] [--first K]

The victim is the RPC server, a process of the machine, or the program that uses the SDK. After each kill no process
of the sandbox may be left within LEFT_SECONDS; after the next `matchlock` command no socket, disk, mount or temporary
file: just the record and its log, which `rm` removes. A failure names the seed and the round, which repeat it.
Environment as in `homes`. Not here: orderly ends (`test_api`).
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from homes import Home, program

# How long after a kill the sandbox's other processes may be there. The host may be slow; none waits for anything.
LEFT_SECONDS = 5.0

# How long a program that uses the SDK may take to notice and to end.
PROGRAM_SECONDS = 20.0

# The processes of a sandbox's network, by the 15 bytes of a name that Linux shows. Nothing ends with one of them: the
# sandbox goes on without a network.
NETWORK = ("matchlock-egres", "matchlock-arriv")

# A whole life. It ends by itself at the first error, as programs do.
LIFE = """
import io, sys, threading, time
from matchlock import Client, MatchlockError, Sandbox
print("started", flush=True)
client = Client()
try:
    with client:
        client.launch(Sandbox("alpine:latest").with_memory(256).with_entrypoint("sh", "-c", "sleep 1000"))
        print("launched", flush=True)
        detached = client.exec_detached("sleep 1000")
        streams = [threading.Thread(target=call, daemon=True) for call in (
            lambda: client.exec_stream("while :; do echo out; sleep 0.01; done", stdout=io.StringIO()),
            lambda: client.exec_pipe("cat", stdin=io.BytesIO(bytes(1 << 20)), stdout=io.BytesIO()),
            lambda: client.log_stream(io.StringIO()),
        )]
        threading.excepthook = lambda _: None
        for stream in streams:
            stream.start()
        for number in range(10):
            client.exec(f"echo {number}; sleep 0.02")
            client.write_file(f"/tmp/{number}", bytes(100_000))
            client.read_file(f"/tmp/{number}")
        detached.kill()
    print("closed", flush=True)
    client.remove()
except MatchlockError as error:
    print(f"noticed: {error}", flush=True)
"""


@dataclass
class Round:
    """One kill."""

    victim: str
    delay: float


class Failure(Exception):
    """The leftovers."""


def live(home: Home) -> tuple[subprocess.Popen[str], float]:
    """Starts a program that uses the SDK; gives it, and when it began."""
    env = {**home.env(), "MATCHLOCK_LOG_LEVEL": "error"}
    process = subprocess.Popen([sys.executable, "-c", LIFE], env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process, time.monotonic()


def victims(home: Home, user: int, kind: str) -> list[int]:
    """Processes of a kind that are there."""
    if kind == "sdk":
        return [user]
    others = [(pid, name) for pid, name in home.processes() if pid != user]
    if kind == "server":
        return [pid for pid, name in others if name == "matchlock"]
    if kind == "network":
        return [pid for pid, name in others if name in NETWORK]
    return [pid for pid, name in others if name != "matchlock" and name not in NETWORK]


def kill_one(home: Home, user: int, chosen: Round, rng: random.Random) -> str:
    """Kills a process of the kind; the server if the machine has none yet, the program if there is no server."""
    for kind in (chosen.victim, "server", "sdk"):
        found = victims(home, user, kind)
        if found:
            victim = rng.choice(found)
            name = comm(victim)
            try:
                os.kill(victim, signal.SIGKILL)
                return f"{kind} ({name})"
            except ProcessLookupError:
                continue
    return "nobody"


def comm(pid: int) -> str:
    """A process's name."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "gone"


def wait_until_none(home: Home, without: int, seconds: float) -> float:
    """Waits until no process is left but one; gives how long it took."""
    start = time.monotonic()
    while left := [(pid, name) for pid, name in home.processes() if pid != without]:
        if time.monotonic() - start > seconds:
            raise Failure(f"processes are left: {left}")
        time.sleep(0.005)
    return time.monotonic() - start


def look(home: Home) -> None:
    """Runs the next command, and sees that it left only records, logs and audits; then that `rm` removes these."""
    vms = home.vms()
    for path in (home.path / ".matchlock" / "vms").rglob("*"):
        is_log = path.parent.name == "logs" and path.name.startswith("vm.log")
        allowed = path.is_dir() or is_log or path.name == "audit.jsonl"
        if not allowed or path.is_socket():
            raise Failure(f"a file is left: {path}")
    if not all(vm["status"] in ("stopped", "crashed") for vm in vms):
        raise Failure(f"a record says it runs: {vms}")
    try:
        home.assert_nothing_left()
    except AssertionError as error:
        raise Failure(str(error)) from error
    if home.vms():
        raise Failure(f"records are left: {home.vms()}")


def cache_listing(home: Home) -> set[Path]:
    """The files of the cache, to which kills must not add."""
    cache = home.path / ".cache" / "matchlock"
    return {path for name in ("images", "kernels", "uppers") for path in (cache / name).rglob("*")}


def one(home: Home, chosen: Round, rng: random.Random) -> tuple[str, float]:
    """One round; says who was killed, and how long the others lived on."""
    process, start = live(home)
    try:
        time.sleep(max(start + chosen.delay - time.monotonic(), 0))
        killed = kill_one(home, process.pid, chosen, rng)
        if killed.startswith("machine"):
            # The server outlives its machine; it ends with the program, which ends at its next call.
            lingering = wait_for_machine(home, process.pid)
        elif killed.startswith("network"):
            lingering = 0.0
        else:
            lingering = wait_until_none(home, process.pid, LEFT_SECONDS)
        try:
            process.wait(PROGRAM_SECONDS)
        except subprocess.TimeoutExpired:
            raise Failure("the program that uses the SDK does not end") from None
        wait_until_none(home, 0, LEFT_SECONDS)
        look(home)
        return killed, lingering
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def wait_for_machine(home: Home, user: int) -> float:
    """Waits until no process of the machine is left."""
    start = time.monotonic()
    while left := [(pid, name) for pid, name in home.processes() if pid != user and name != "matchlock"]:
        if time.monotonic() - start > LEFT_SECONDS:
            raise Failure(f"processes of the machine are left: {left}")
        time.sleep(0.005)
    return time.monotonic() - start


def whole_life(home: Home) -> float:
    """The length of a life that nobody ends."""
    process, start = live(home)
    output, _ = process.communicate(timeout=300)
    if process.returncode != 0 or "noticed" in output or "closed" not in output:
        raise SystemExit(f"a life that nobody ended failed: {output}")
    took = time.monotonic() - start
    home.assert_nothing_left()
    return took


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kills", type=int, nargs="?", default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--first", type=int, default=0, help="round to begin with")
    arguments = parser.parse_args()
    home = Home()
    try:
        home.image("alpine:latest")
        home.own_cache()
        life = whole_life(home)
        cache = cache_listing(home)
        print(f"{program()}: {arguments.kills} kills in lives of {life:.1f} s, seed {arguments.seed}", flush=True)
        longest = 0.0
        for number in range(arguments.first, arguments.first + arguments.kills):
            rng = random.Random(f"{arguments.seed} {number}")
            chosen = Round(rng.choice(["server", "machine", "network", "sdk"]), rng.uniform(0, life))
            try:
                killed, lingering = one(home, chosen, rng)
                added = cache_listing(home) - cache
                if added:
                    raise Failure(f"files are left in the cache: {sorted(added)}")
            except Failure as failure:
                print(f"round {number}, {chosen}: {failure}; repeat: --seed {arguments.seed} --first {number} 1")
                return 1
            longest = max(longest, lingering)
            print(
                f"round {number}: {killed} after {chosen.delay:.2f} s; the others ended in {lingering:.3f} s",
                flush=True,
            )
        print(f"nothing was left {arguments.kills} times; the longest any process lived on: {longest:.3f} s")
        return 0
    finally:
        home.remove()


if __name__ == "__main__":
    sys.exit(main())
