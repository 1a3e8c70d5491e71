"""A home directory of a test's own, and the check that nothing is left behind in it.

Kernels and upper disks are those of the build's cache; images are kept apart from those of other tests. Environment:
`MATCHLOCK_BIN` (the program), `MATCHLOCK_MACHINE` (`software` or `kvm`), `MATCHLOCK_TEST_CACHE` (what is made once).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from images import archive

# How long processes may take to notice that their sandbox has ended.
LINGER_SECONDS = 10.0


def program() -> str:
    """The program under test."""
    return os.environ["MATCHLOCK_BIN"]


def cache() -> Path:
    """The directory for things that are made once."""
    return Path(os.environ["MATCHLOCK_TEST_CACHE"])


class Home:
    """A user's home directory."""

    count = 0

    def __init__(self) -> None:
        Home.count += 1
        self.path = Path(tempfile.mkdtemp(prefix="matchlock-sdk-"))
        self.mark = f"/matchlock-sdk-test-{os.getpid()}-{Home.count}"
        mine = self.path / ".cache" / "matchlock"
        mine.mkdir(parents=True)
        (self.path / "tmp").mkdir()
        shared = cache()
        for name, place in (
            ("kernels", shared.parent / "cache" / "kernels"),
            ("uppers", shared.parent / "cache" / "uppers"),
            ("images", shared / "images"),
        ):
            place.mkdir(parents=True, exist_ok=True)
            (mine / name).symlink_to(place)

    def env(self) -> dict[str, str]:
        """The environment of everything that belongs to it."""
        env = dict(os.environ)
        env["HOME"] = str(self.path)
        env["TMPDIR"] = str(self.path / "tmp")
        env["MATCHLOCK_BIN"] = program()
        env.setdefault("MATCHLOCK_MACHINE", "software")
        # Every process of a sandbox inherits PATH, so it carries the mark by which they are found.
        env["PATH"] = f"{os.environ['PATH']}:{self.mark}"
        return env

    def own_cache(self) -> None:
        """Puts copies in place of what it shares with other tests."""
        for link in (self.path / ".cache" / "matchlock").iterdir():
            target = link.resolve()
            link.unlink()
            subprocess.run(["cp", "-a", "--sparse=always", "--reflink=auto", str(target), str(link)], check=True)

    def matchlock(self, *arguments: str, stdin: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Runs the program to its end."""
        with open(stdin or os.devnull, "rb") as source:
            return subprocess.run(
                [program(), *arguments], stdin=source, capture_output=True, text=True, env=self.env(), check=False
            )

    def vms(self) -> list[dict[str, object]]:
        """The sandboxes there are records of."""
        done = self.matchlock("list", "--json")
        assert done.returncode == 0, done.stderr
        listed: list[dict[str, object]] = json.loads(done.stdout)
        return listed

    def processes(self) -> list[tuple[int, str]]:
        """Processes that belong to it, zombies aside; those of this process aside."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                if self.mark.encode() in (entry / "environ").read_bytes():
                    found.append((int(entry.name), (entry / "comm").read_text().strip()))
            except OSError:
                continue
        return found

    def assert_no_process(self) -> None:
        """Waits until no process is left."""
        deadline = time.monotonic() + LINGER_SECONDS
        while left := self.processes():
            assert time.monotonic() < deadline, f"still there: {left}"
            time.sleep(0.02)

    def assert_nothing_left(self) -> None:
        """No process; and after the next command, which is `list`, no file, socket or mount of any sandbox."""
        self.assert_no_process()
        for vm in self.vms():
            assert vm["status"] in ("stopped", "crashed"), vm
            done = self.matchlock("rm", str(vm["id"]))
            assert done.returncode == 0, done.stderr
        left = [path for name in (".matchlock/vms", "tmp") for path in (self.path / name).glob("*")]
        assert left == [], left
        mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if str(self.path) in line]
        assert mounts == [], mounts

    def image(self, name: str) -> None:
        """Makes an image available."""
        listed = json.loads(self.matchlock("image", "ls", "--json").stdout)
        if not any(image["tag"] == name for image in listed):
            done = self.matchlock("image", "import", name, stdin=archive(name, cache() / "archives"))
            assert done.returncode == 0, done.stderr

    def remove(self) -> None:
        """Ends what a failed test left, and removes the directory."""
        for pid, _ in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        shutil.rmtree(self.path, ignore_errors=True)
