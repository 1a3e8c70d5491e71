"""A client of the stand-in server, and fixtures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from matchlock import Client, Config, CreateOptions


@pytest.fixture
def program(tmp_path: Path) -> str:
    """The stand-in for the matchlock program."""
    server = Path(__file__).with_name("fake_server.py")
    wrapper = tmp_path / "matchlock"
    wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{server}" "$@"\n')
    wrapper.chmod(0o755)
    return str(wrapper)


@pytest.fixture
def client(program: str) -> Iterator[Client]:
    """A started client with a sandbox."""
    with Client(Config(binary_path=program)) as client:
        client.create(CreateOptions(image="image1"))
        yield client
