"""The documents' commands that install the package do so: as written, each in an environment of its own.

Needs no guest. Not here: the documents' other code (`test_documents`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import documents
from documents import Block

ROOT = Path(__file__).resolve().parent.parent.parent

SHELL = [block for block in documents.blocks() if block.language == "sh"]


def identity(block: Block) -> str:
    """A test's name."""
    return f"{block.document}: {block.name}"


@pytest.mark.parametrize("block", SHELL, ids=identity)
def test_installation(block: Block, tmp_path: Path) -> None:
    """A block that installs from an index gets a directory with this package as its index."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    env = {**os.environ, "PATH": f"{tmp_path}/venv/bin:{os.environ['PATH']}", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    env["PIP_CONSTRAINT"] = str(Path(__file__).with_name("requirements-sdk.txt"))
    python = str(tmp_path / "venv" / "bin" / "python")
    if "-e" not in block.text:
        wheel = ["wheel", "-q", "--no-deps", "-w", str(tmp_path / "wheels"), str(ROOT / "sdk" / "python")]
        subprocess.run([python, "-m", "pip", *wheel], check=True, env=env)
        env.update(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path / "wheels"))
    subprocess.run(["sh", "-e", "-c", block.text], cwd=ROOT, env=env, check=True)
    program = "import matchlock; print(matchlock.__version__, matchlock.Client.__name__)"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "0.3.0 Client\n"
