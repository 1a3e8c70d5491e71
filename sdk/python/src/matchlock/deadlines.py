"""The end of a call's time.

Not here: the calls.
"""

from __future__ import annotations

import math
import time

LONGEST_SECONDS = 1e9
"""The longest limit; a longer time is none, as a wait of the system cannot count much further."""


def seconds(timeout: float | None) -> float | None:
    """The length of a timeout; None = without end. Raises ValueError and TypeError for values that are no time."""
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
        """The time that is left, in seconds; None = without end."""
        return None if self._at is None else max(self._at - time.monotonic(), 0)
