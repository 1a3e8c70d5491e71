"""Runs the Python suites: `run.py check` without a guest, `run.py vm` with guests, `run.py all` both.

`check`: types (mypy, pyright), style (ruff), the package's unit tests, its installation, its API against the published
one's.
`vm`: the API suite with the published client 0.2.17 and with the package of sdk/python, the package's own suite, the
documents' code, sudo, forks, and a short killing test. Needs the built program: `--bin`, else `MATCHLOCK_BIN`, else
target/release/matchlock; `--machine` as for `matchlock run`.

What is fetched or made once is kept in target/sdk-python. Prints a line `PART: N passed, M failed, K skipped`
for each part, and one for all. Standard library only: what else is needed it installs, pinned, into environments of its
own. Not here: the tests.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import venv
import xml.etree.ElementTree as ElementTree
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PACKAGE = ROOT / "sdk" / "python"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
CACHE = TARGET / "sdk-python"

SUITES = ["test_api.py", "test_extensions.py", "test_documents.py", "test_sudo.py", "test_forks.py"]
KILLS = 10


class Counts:
    """Tests of one part."""

    def __init__(self, passed: int = 0, failed: int = 0, skipped: int = 0) -> None:
        self.passed, self.failed, self.skipped = passed, failed, skipped

    def add(self, other: Counts) -> None:
        """Takes another part's."""
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def environment(name: str, package: bool) -> Path:
    """The Python of a virtual environment with the pinned requirements; made anew when they change."""
    requirements = HERE / f"requirements-{name}.txt"
    content = requirements.read_bytes() + sys.version.encode() + (PACKAGE / "pyproject.toml").read_bytes()
    key = hashlib.sha256(content).hexdigest()[:12]
    directory = CACHE / f"venv-{name}-{key}"
    python = directory / "bin" / "python"
    done = directory / "done"
    if not done.exists():
        print(f"environment {name}: installing", flush=True)
        venv.create(directory, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        subprocess.run([*pip, "-r", str(requirements)], check=True)
        if package:
            subprocess.run([*pip, "--no-deps", "-e", str(PACKAGE)], check=True)
        done.touch()
    return python


def tool(what: str, command: list[str], cwd: Path) -> Counts:
    """A check that passes or fails as a whole."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(done.stdout + done.stderr, flush=True)
    counts = Counts(passed=1) if done.returncode == 0 else Counts(failed=1)
    print(f"{what}: {counts}", flush=True)
    return counts


def tests(what: str, python: Path, arguments: list[str], cwd: Path, env: dict[str, str]) -> Counts:
    """A run of pytest."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        command = [str(python), "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", f"--junitxml={report}"]
        done = subprocess.run([*command, *arguments], cwd=cwd, env=env, check=False)
        try:
            counts = read(report)
        except (OSError, ElementTree.ParseError):
            counts = Counts(failed=1)
    if done.returncode not in (0, 1) and counts.failed == 0:
        counts.failed = 1
    print(f"{what}: {counts}", flush=True)
    return counts


def read(report: Path) -> Counts:
    """The counts in a report of pytest."""
    counts = Counts()
    for suite in ElementTree.parse(report).iter("testsuite"):
        total, failed, errors, skipped = (
            int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")
        )
        counts.add(Counts(total - failed - errors - skipped, failed + errors, skipped))
    return counts


def check() -> Counts:
    """All that needs no guest."""
    python = environment("check", package=True)
    published = environment("published", package=False)
    bin = python.parent
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    counts = Counts()
    counts.add(tool("python format", [str(bin / "ruff"), "format", "--check", ".", str(HERE)], PACKAGE))
    counts.add(tool("python lints", [str(bin / "ruff"), "check", ".", str(HERE)], PACKAGE))
    counts.add(tool("mypy --strict", [str(bin / "mypy")], PACKAGE))
    counts.add(tool("pyright", [str(bin / "pyright")], PACKAGE))
    counts.add(interface(published, python))
    counts.add(tests("python unit tests", python, ["tests"], PACKAGE, env))
    counts.add(tests("python installation", python, ["test_installation.py"], HERE, env))
    return counts


def interface(published: Path, python: Path) -> Counts:
    """The API of the published package is part of ours."""
    with tempfile.TemporaryDirectory() as directory:
        dumps = []
        for name, interpreter in (("old", published), ("new", python)):
            path = Path(directory) / name
            with path.open("w") as file:
                subprocess.run([str(interpreter), str(HERE / "api.py"), "dump"], stdout=file, check=True)
            dumps.append(str(path))
        return tool("python api", [str(python), str(HERE / "api.py"), "compare", *dumps], HERE)


def vm(bin: str, machine: str, only: list[str]) -> Counts:
    """All that needs guests."""
    if not Path(bin).is_file():
        sys.exit(f"{bin}: not there; cargo xtask build makes it")
    published = environment("published", package=False)
    python = environment("sdk", package=True)
    env = {
        **os.environ,
        "MATCHLOCK_BIN": str(Path(bin).resolve()),
        "MATCHLOCK_MACHINE": machine,
        "MATCHLOCK_TEST_CACHE": str(CACHE),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    arguments = ["-k", " or ".join(only)] if only else []
    counts = Counts()
    name = "published client 0.2.17"
    counts.add(tests(name, published, ["test_api.py", "test_documents.py", *arguments], HERE, env))
    counts.add(tests("sdk/python", python, [*SUITES, *arguments], HERE, env))
    if not only:
        command = [str(python), "kill.py", str(KILLS)]
        killed = subprocess.run(command, cwd=HERE, env=env, check=False).returncode == 0
        kills = Counts(passed=1) if killed else Counts(failed=1)
        print(f"killing test, {KILLS} kills: {kills}", flush=True)
        counts.add(kills)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=["check", "vm", "all"])
    parser.add_argument("only", nargs="*", help="with vm: only tests with these words in their names")
    parser.add_argument("--bin", default=os.environ.get("MATCHLOCK_BIN", str(TARGET / "release" / "matchlock")))
    parser.add_argument("--machine", default=os.environ.get("MATCHLOCK_MACHINE", "software"))
    arguments = parser.parse_intermixed_args()
    counts = Counts()
    if arguments.what in ("check", "all"):
        counts.add(check())
    if arguments.what in ("vm", "all"):
        counts.add(vm(arguments.bin, arguments.machine, arguments.only))
    print(f"python: {counts}")
    return 1 if counts.failed else 0


if __name__ == "__main__":
    sys.exit(main())
