"""Until when a call waits.

Not here: what ends with it.
"""

from __future__ import annotations

import math
import time

LONGEST_SECONDS = 1e9
"""What is longer is no limit: a wait of the system cannot count much further."""


def seconds(timeout: float | None) -> float | None:
    """How long a timeout is; None = without end. Raises ValueError and TypeError for what is no time."""
    if timeout is None or timeout > LONGEST_SECONDS:
        return None
    if math.isnan(timeout):
        raise ValueError("timeout must be a number of seconds, not NaN")
    return float(timeout)


class Deadline:
    """The end of a timeout that begins now."""

    def __init__(self, timeout: float | None = None) -> None:
        self.timeout = timeout
        limit = seconds(timeout)
        self._at = None if limit is None else time.monotonic() + limit

    def remaining(self) -> float | None:
        """How long it is until then, in seconds; None = without end."""
        return None if self._at is None else max(self._at - time.monotonic(), 0)
