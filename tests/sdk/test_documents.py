"""Every block of code in the documents runs as it is written.

Each in a process of its own, in an empty directory, with local images of the names it uses. A block that asks for the
network is refused for now, by name; that is checked, and the block counted as waiting.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import conftest
import documents
import homes
from documents import FENCED, PLAIN, README, Block

# Variables that the blocks take from the user's environment.
KEYS = {"API_KEY": "real-key", "ANTHROPIC_API_KEY": "real-key"}

# The output of a block, as a pattern over the whole.
PRINTS = {
    "quick start": r"hello from the sandbox\n\n",
    "streaming": r"1\n2\n3\nExit code: 0\nDuration: [34]\d\d\dms\n",
    "streaming output": r"1\n2\n3\nExit code: 0\nDuration: [34]\d\d\dms\n",
    "files": r"Hello, world!\nhello\.txt \(13 bytes, dir=False\)\nscript\.sh \(17 bytes, dir=False\)\n",
    "file operations": r"Hello, world!\nhello\.txt \(13 bytes, dir=False\)\nscript\.sh \(17 bytes, dir=False\)\n",
    "lifecycle": r"vm-[0-9a-f]{8}\n",
    "lifecycle management": r"vm-[0-9a-f]{8}\n",
    "errors": r"Command failed: \n",
    "error handling": r"Command failed: \n",
    # These build a sandbox and start none.
    "interception rules": "",
    "interception callback": "",
    "mounts": "",
    "filesystem mounts": "",
    "owners": "",
    # The package's README.
    "matchlock for python 2": r"3 hello you\n\n",
    "commands": r"(.*\n)+True\nNone\nTrue\n",
    "files (README.md)": r"FileChange\(kind='created', path='/data/in/big'\)\n20000000\n",
    "asyncio": r"True\n",
    "sandboxes": r"kept\n\n",
}

# Blocks that are refused until the part is built, and the part.
WAITING = {
    (PLAIN, "builder"): "network.secrets",
    (FENCED, "builder api"): "network.secrets",
    (PLAIN, "network policy"): "network.secrets",
    (FENCED, "network policy & secrets"): "network.secrets",
}

# Blocks that build a sandbox which `launch` refuses until the part is built.
WAITING_TO_LAUNCH = {
    (PLAIN, "interception rules"): "network.intercept",
    (PLAIN, "interception callback"): "network.intercept",
}

# Blocks that build a sandbox with mounts; what a program in it says of them; and what the host has of them afterwards.
MADE = "config:file\ncustom:made\ndata:file\nsrc:file\nsrc:made\n"
MOUNTS = {
    (PLAIN, "mounts"): ("config no\ncustom yes\ndata yes\nsrc yes\ntmp yes\n", MADE),
    (FENCED, "filesystem mounts"): ("config no\ncustom yes\ndata yes\nsrc yes\ntmp yes\n", MADE),
    (PLAIN, "owners"): ("1000:1000\n1000\nconfig no\nsrc yes\n", "config:file\ndata:file\nsrc:file\nsrc:made\n"),
}

CONFIGURATION = [(PLAIN, "configuration"), (FENCED, "custom configuration")]

BLOCKS = documents.blocks()


def identity(block: Block) -> str:
    """A test's name."""
    return f"{block.document.removeprefix('python-sdk-')}: {block.name}"


def run(block: str, home: homes.Home, directory: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a block."""
    program = directory / "block.py"
    program.write_text(block, encoding="utf-8")
    return subprocess.run(
        [sys.executable, str(program)],
        cwd=directory,
        env={**home.env(), **KEYS, **env},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
        check=False,
    )


def test_no_code_is_forgotten() -> None:
    assert documents.forgotten() == []
    assert len([block for block in BLOCKS if block.document == PLAIN]) == 14
    assert len([block for block in BLOCKS if block.document == FENCED]) == 11
    assert len([block for block in BLOCKS if block.document == README]) == 6
    for block in BLOCKS:
        if block.language == "python":
            compile(block.text, block.name, "exec")


# The README of sdk/python is not about the published client.
OURS = [block for block in BLOCKS if not (conftest.PUBLISHED and block.document == README)]
PYTHON = [block for block in OURS if block.language == "python"]


@pytest.mark.parametrize("block", PYTHON, ids=identity)
def test_block(block: Block, home: homes.Home, tmp_path: Path) -> None:
    key = (block.document, block.name)
    conftest.provide(home, "alpine:latest")
    if "python:3.12-alpine" in block.text:
        conftest.provide(home, "python:3.12-alpine")
    text = block.text
    if block.name == "owners":
        # The block goes on where the one above it ended.
        text = next(other.text for other in PYTHON if other.name == "mounts") + text
    if key in CONFIGURATION:
        configuration(text, home, tmp_path)
        return
    done = run(text, home, tmp_path)
    if key in WAITING:
        part = WAITING[key]
        assert done.returncode == 1, done
        assert done.stderr.rstrip().endswith(f"RPCError: [-32000] {part}: not built yet"), done.stderr
        pytest.skip(f"waiting for {part}: refused with -32000, which says so")
    assert done.returncode == 0, done.stderr
    prints = PRINTS.get(f"{block.name} ({block.document})", PRINTS.get(block.name))
    assert prints is not None and re.fullmatch(prints, done.stdout), done.stdout
    assert done.stderr == ""
    home.assert_no_process()


@pytest.mark.parametrize("key", WAITING_TO_LAUNCH, ids=" ".join)
def test_launch_of_what_a_block_builds(key: tuple[str, str], home: homes.Home, tmp_path: Path) -> None:
    part = WAITING_TO_LAUNCH[key]
    conftest.provide(home, "alpine:latest")
    text = next(block.text for block in PYTHON if (block.document, block.name) == key)
    launch = "from matchlock import Client, Sandbox\n{}\nwith Client() as client:\n    client.launch(sandbox)\n"
    done = run(launch.format(text), home, tmp_path)
    assert done.stderr.rstrip().endswith(f"RPCError: [-32000] {part}: not built yet"), done.stderr
    pytest.skip(f"waiting for {part}: refused with -32000, which says so")


@pytest.mark.parametrize("key", MOUNTS, ids=" ".join)
def test_mounts_that_a_block_asks_for(key: tuple[str, str], home: homes.Home, tmp_path: Path) -> None:
    conftest.provide(home, "alpine:latest")
    text = next(block.text for block in PYTHON if (block.document, block.name) == key)
    if key[1] == "owners":
        text = next(block.text for block in PYTHON if block.name == "mounts") + text
        command = "stat -c %u:%g src; stat -c %u config; "
    else:
        command = ""
    command += "for name in *; do if echo x 2>/dev/null > $name/made; then echo $name yes; else echo $name no; fi; done"
    launch = (
        f"with Client() as client:\n    client.launch(sandbox)\n    print(client.exec({command!r}).stdout, end='')\n"
    )
    (tmp_path / "block.py").write_text(text + launch, encoding="utf-8")
    # The documents' directories of the host, where nothing of this host's is.
    script = f"""
        mount -t tmpfs none /home &&
        mkdir -p /home/user/project && cd /home/user/project && mkdir src config data &&
        touch src/file config/file data/file && cd '{tmp_path}' &&
        '{sys.executable}' block.py || exit
        for file in /home/user/project/*/* /tmp/custom/*; do
            [ ! -e "$file" ] || echo "$(basename "$(dirname "$file")"):${{file##*/}}"
        done | sort
    """
    if any(Path(needed).is_relative_to("/home") for needed in (sys.executable, homes.program(), home.path, tmp_path)):
        pytest.skip("what the test needs is in /home")
    custom = Path("/tmp/custom")
    custom.mkdir()
    try:
        done = privately(script, home, tmp_path)
    finally:
        shutil.rmtree(custom)
    assert (done.returncode, done.stdout, done.stderr) == (0, "".join(MOUNTS[key]), "")
    home.assert_no_process()


def configuration(text: str, home: homes.Home, directory: Path) -> None:
    """The block wants sudo, and the program in /usr/local/bin: a private mount of that directory has it."""
    if shutil.which("sudo") is None:
        pytest.skip("sudo is not installed")
    (directory / "block.py").write_text(text, encoding="utf-8")
    script = f"""
        mount -t tmpfs none /usr/local/bin &&
        for program in '{Path(homes.program()).parent}'/matchlock*; do ln -s "$program" /usr/local/bin/; done &&
        exec '{sys.executable}' block.py
    """
    done = privately(script, home, directory)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def privately(script: str, home: homes.Home, directory: Path) -> subprocess.CompletedProcess[str]:
    """Runs a script with mounts that nobody else has."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    if os.geteuid() != 0:
        pytest.skip("private mounts take root")
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"mount --make-rprivate / && {script.lstrip()}"],
        cwd=directory,
        env=home.env(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
        check=False,
    )
