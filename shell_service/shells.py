"""The interpreters that jobs may name."""

from __future__ import annotations

import os
from collections.abc import Mapping


def available(configured: Mapping[str, str]) -> dict[str, str]:
    """Of the configured interpreters, by name, those that this host has and sandboxes can therefore run.

    A sandbox holds the host's ``/usr`` (and what ``/bin`` leads to), so anything else is not offered.
    """
    return {
        name: path
        for name, path in configured.items()
        if os.path.realpath(path).startswith("/usr/") and os.access(path, os.X_OK)
    }
