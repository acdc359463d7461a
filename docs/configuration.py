"""The configuration reference, from the comments of ``config.yaml.defaults``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from docs.operations import cell

_KEY = re.compile(r"^( *)([\w]+):(?: (.*))?$")


@dataclass
class Knob:
    """A key with its default and the comment above it; a group has no default of its own."""

    path: tuple[str, ...]
    default: str | None
    comment: str
    below: list[Knob] = field(default_factory=list)


def parse(text: str) -> list[Knob]:
    """The knobs of a YAML file of nested maps. A comment may stand above several keys that follow each other."""
    top: list[Knob] = []
    stack: list[tuple[int, Knob]] = []
    comment: list[str] = []
    last_comment = ""
    for line in text.splitlines():
        if line.strip().startswith("#"):
            comment.append(line.strip().lstrip("#").strip())
            continue
        if not line.strip():
            comment, last_comment = [], ""
            continue
        match = _KEY.match(line)
        if match is None:
            raise ValueError(f"not understood: {line!r}")
        indent, key, value = len(match[1]), match[2], match[3]
        while stack and stack[-1][0] >= indent:
            stack.pop()
        last_comment = " ".join(comment) if comment else last_comment
        path = (*(stack[-1][1].path if stack else ()), key)
        knob = Knob(path, value, last_comment)
        (stack[-1][1].below if stack else top).append(knob)
        if value is None:
            stack.append((indent, knob))
            last_comment = knob.comment if len(path) > 1 else ""  # what stands above `memory` is about its default too
        comment = []
    return top


def page(text: str) -> str:
    """The reference as Markdown: a table for the keys at the top, and one for each group."""
    knobs = parse(text)
    parts = [_table([knob for knob in knobs if not knob.below])]
    for group in (knob for knob in knobs if knob.below):
        parts += [f"## {group.path[0]}", group.comment, _table(_leaves(group))]
    return "\n\n".join(part for part in parts if part)


def _leaves(knob: Knob) -> list[Knob]:
    return [leaf for below in knob.below for leaf in _leaves(below)] if knob.below else [knob]


def _table(knobs: list[Knob]) -> str:
    rows = [f"| `{'.'.join(knob.path)}` | `{knob.default}` | {cell(knob.comment)} |" for knob in knobs]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows]) if rows else ""
