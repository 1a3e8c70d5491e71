"""The process of a server, and this side's ends of its pipes.

Not here: their content (`transport`, `aio_transport`).
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence

from . import forks
from .last_words import LastWords


class Server:
    """A server that was started."""

    def __init__(self, argv: Sequence[str]) -> None:
        # While nobody forks: Popen waits for the end of a pipe of its own, of which a child would have a copy, too.
        with forks.HELD, contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            self.stderr = LastWords()
            ours.callback(self.stderr.close)
            stdin, self.stdin = forks.pipe()
            theirs.enter_context(stdin)
            ours.enter_context(self.stdin)
            self.stdout, stdout = forks.pipe()
            ours.enter_context(self.stdout)
            theirs.enter_context(stdout)
            self.process = subprocess.Popen(list(argv), stdin=stdin, stdout=stdout, stderr=self.stderr.fileno())
            ours.pop_all()
