"""The code of documents, block by block, exactly as it stands there.

The documents are the two that users of earlier releases have, and the package's README. Where there are no fences, a
block is found by the line it begins with, below a heading, and by the line that follows it. Not here: running it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

DOCUMENTS = Path(__file__).resolve().parent / "documents"
FENCED = "python-sdk-0.1.md"
PLAIN = "python-sdk-0.2.16.txt"
README = "README.md"

PATHS = {
    FENCED: DOCUMENTS / FENCED,
    PLAIN: DOCUMENTS / PLAIN,
    README: DOCUMENTS.parent.parent.parent / "sdk" / "python" / README,
}


@dataclass(frozen=True)
class Block:
    """A piece of code."""

    document: str
    name: str
    language: str
    text: str


@dataclass(frozen=True)
class Marker:
    """The lines of a block in the document without fences: from `first`, below `heading`, up to `after`."""

    name: str
    heading: str
    first: str
    after: str
    language: str = "python"


MARKERS = [
    Marker("install", "Installation", "pip install matchlock", "Or install from source:", "sh"),
    Marker("install from source", "Installation", "pip install -e sdk/python", "Quick Start", "sh"),
    Marker("quick start", "Quick Start", "from matchlock import Client, Sandbox", "Usage"),
    Marker("builder", "Builder API", "import os", "Streaming Output"),
    Marker("streaming", "Streaming Output", "import sys", "File Operations"),
    Marker("files", "File Operations", "from matchlock import Client, Sandbox", "Network Policy & Secrets"),
    Marker("network policy", "Network Policy & Secrets", "import os", "Private-IP behavior in the Python SDK:"),
    Marker(
        "interception rules", "Network Interception Rules", "from matchlock import (", "Callback-based interception:"
    ),
    Marker("interception callback", "Callback-based interception:", "from matchlock import (", "Filesystem Mounts"),
    Marker(
        "mounts", "Filesystem Mounts", "from matchlock import Client, Sandbox, MountConfig", "Pass owner_uid and/or"
    ),
    Marker("owners", "Filesystem Mounts", "sandbox = (", "Custom Configuration"),
    Marker("configuration", "Custom Configuration", "from matchlock import Client, Config", "The binary path can also"),
    Marker("lifecycle", "Lifecycle Management", "from matchlock import Client, Sandbox", "Error Handling"),
    Marker(
        "errors", "Error Handling", "from matchlock import Client, Sandbox, MatchlockError, RPCError", "API Reference"
    ),
]


def plain_blocks() -> list[Block]:
    """The blocks of the document without fences."""
    lines = PATHS[PLAIN].read_text(encoding="utf-8").splitlines()
    blocks = []
    used = 0
    for marker in MARKERS:
        heading = lines.index(marker.heading)
        # Two blocks below one heading follow each other.
        start = lines.index(marker.first, max(heading, used))
        end = next(number for number in range(start, len(lines)) if lines[number].startswith(marker.after))
        text = "\n".join(lines[start:end]).strip() + "\n"
        blocks.append(Block(PLAIN, marker.name, marker.language, text))
        used = end
    return blocks


def fenced_blocks(document: str) -> list[Block]:
    """The blocks of a document with fences."""
    text = PATHS[document].read_text(encoding="utf-8")
    blocks = []
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        heading = re.findall(r"^#+ (.*)$", text[: match.start()], re.MULTILINE)[-1]
        name, count = heading.lower(), sum(block.name.startswith(heading.lower()) for block in blocks)
        language = "sh" if match[1] == "bash" else match[1]
        blocks.append(Block(document, name if count == 0 else f"{name} {count + 1}", language, match[2]))
    return blocks


def blocks() -> list[Block]:
    """All of them."""
    return fenced_blocks(FENCED) + plain_blocks() + fenced_blocks(README)


def forgotten() -> list[str]:
    """Lines of the document without fences that look like code and are in no block."""
    text = PATHS[PLAIN].read_text(encoding="utf-8")
    for block in plain_blocks():
        assert block.text in text
        text = text.replace(block.text, "\n", 1)
    code = re.compile(r"\s{2,}\S|(from|import|with|def|try|pip|client|sandbox|config|result|print)\b.*[=(:]|pip ")
    return [line for line in text.splitlines() if code.match(line) and "•" not in line]
