"""Names of files, relative to a folder, that may come from anybody: of uploads, in archives, and of artifacts."""

from __future__ import annotations

MAX_BYTES = 255  # of a whole name
MAX_DEPTH = 16  # folders and the file itself


def problem(name: str) -> str | None:
    """What is wrong with such a name, as the end of a sentence; None: nothing.

    So what it names lies within the folder, and can be told and written anywhere: it is text of one line.
    """
    parts = name.split("/")
    if not name.isprintable():  # undecodable bytes, control characters, line separators
        return "must not hold control characters, and must be UTF-8"
    if "\\" in name:
        return "must not hold a backslash; folders are separated by /"
    if name.startswith("/") or "" in parts or "." in parts or ".." in parts:
        return "must be relative, and no part of it may be empty, '.' or '..'"
    if len(name.encode()) > MAX_BYTES:
        return f"must be at most {MAX_BYTES} bytes"
    if len(parts) > MAX_DEPTH:
        return f"must be at most {MAX_DEPTH} deep"
    return None
