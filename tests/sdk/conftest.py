"""The common part of the suites: a home, images, a sandbox, and a list of the calls that were made.

The suites run with whichever `matchlock` package is installed: the published 0.2.17, or the one of sdk/python.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import matchlock
import pytest
from matchlock import Client, Config, Sandbox

import homes
import images

PUBLISHED = matchlock.__version__ == "0.2.17"

CALLED: set[str] = set()


def public(cls: type) -> set[str]:
    """The public methods and properties of a class."""
    return {name for name in vars(cls) if not name.startswith("_")}


def record(cls: type) -> None:
    """Has every call noted."""
    for name in public(cls):
        member = vars(cls)[name]
        if isinstance(member, property) and member.fget is not None:
            setattr(cls, name, property(noted(f"{cls.__name__}.{name}", member.fget)))
        elif callable(member):
            setattr(cls, name, noted(f"{cls.__name__}.{name}", member))


def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that notes its call."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        CALLED.add(name)
        return function(*args, **kwargs)

    return call


record(Client)
record(Sandbox)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[homes.Home]:
    """A home that is empty again when the tests of a file are done."""
    # The tests' own temporary files are not the home's.
    tmp_path_factory.getbasetemp()
    home = homes.Home()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in home.env().items():
            patch.setenv(name, value)
        patch.setattr("tempfile.tempdir", None)
        try:
            yield home
            home.assert_nothing_left()
        finally:
            home.remove()


@pytest.fixture(scope="module")
def alpine(home: homes.Home) -> str:
    """An image with a shell."""
    return provide(home, "alpine:latest")


def provide(home: homes.Home, name: str) -> str:
    """An image, or a skip that says why there is none."""
    try:
        home.image(name)
    except images.Unavailable as reason:
        pytest.skip(f"image {name}: {reason}")
    return name


@pytest.fixture
def config() -> Config:
    """The program under test."""
    return Config(binary_path=homes.program())


@pytest.fixture(scope="module")
def client(home: homes.Home, alpine: str) -> Iterator[Client]:
    """A sandbox that the tests of a file share."""
    with Client() as client:
        client.launch(Sandbox(alpine).with_memory(256))
        yield client
    client.remove()
