"""The interpreters that jobs may name."""

from __future__ import annotations

import os
from collections.abc import Mapping

#: The shell of files of which none is named: what the entrypoint's own first line says, else its ending.
AUTO = "auto"
ENDINGS = {".py": "python", ".sh": "sh"}


def of_ending(entrypoint: str, shells: Mapping[str, str]) -> str | None:
    """The path of the interpreter that files of this ending are run with, if it is one of `shells`."""
    return shells.get(ENDINGS.get(os.path.splitext(entrypoint)[1], ""))


def available(configured: Mapping[str, str]) -> dict[str, str]:
    """Of the configured interpreters, by name, those that this host has and sandboxes can therefore run.

    A sandbox holds the host's ``/usr`` (and what ``/bin`` leads to), so anything else is not offered.
    """
    return {
        name: path
        for name, path in configured.items()
        if os.path.realpath(path).startswith("/usr/") and os.access(path, os.X_OK)
    }
