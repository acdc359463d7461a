"""The examples of the documentation: fenced blocks behind ``<!-- run -->``, and what they print.

``<!-- prints -->`` stands before the output of the block above it, where ``...`` stands for anything: within a line
anything on that line, as a line of its own any lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from shell_service.settings import ROOT

_BLOCK = re.compile(r"<!-- (run|prints) -->\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass
class Example:
    """A block to run."""

    line: int
    language: str
    code: str
    prints: str | None = None


def pages() -> list[Path]:
    """The pages that have examples, and the README."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in found if "<!-- run -->" in path.read_text()]


def examples(path: Path) -> list[Example]:
    """The examples of a page, in order."""
    text = path.read_text()
    found: list[Example] = []
    for match in _BLOCK.finditer(text):
        kind, language, code = match.groups()
        if kind == "run":
            found.append(Example(text.count("\n", 0, match.start()) + 1, language, code))
        else:
            found[-1].prints = code
    assert len(_BLOCK.findall(text)) == len(re.findall(r"^<!-- (?:run|prints) -->$", text, re.MULTILINE)), path
    return found


def matches(pattern: str, printed: str) -> bool:
    """Whether `printed` is what a page shows."""
    lines = pattern.strip().split("\n")
    expressions = [
        r"(?:.*\n)*?" if line.strip() == "..." else re.escape(line).replace(r"\.\.\.", ".*") + r"\n" for line in lines
    ]
    return re.fullmatch("".join(expressions), printed.strip() + "\n") is not None
