"""Requests to the stand-in server, and the state of this process, for tests."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from matchlock import Client


def requests(client: Client, method: str) -> list[dict[str, Any]]:
    """The messages of a method that the server received."""
    received = json.loads(client.exec("requests").stdout)
    return [request for request in received if request["method"] == method]


def params(client: Client, method: str) -> Any:
    """The parameters of the last request of a method."""
    return requests(client, method)[-1].get("params")


def threads() -> list[str]:
    """This package's threads that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("matchlock")]


def descriptors() -> int:
    """The number of open descriptors."""
    return len(os.listdir("/proc/self/fd"))


def eventually(condition: Callable[[], bool]) -> None:
    """Waits for something that another thread does."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)
