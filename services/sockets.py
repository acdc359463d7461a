"""The unix sockets on which nginx finds the services behind it."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path


def bind(path: Path) -> socket.socket:
    """A socket at `path`, in place of an earlier one; the folder's group may connect once it listens."""
    bound = socket.socket(socket.AF_UNIX)
    bound.setblocking(False)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    bound.bind(str(path))
    os.chmod(path, 0o660)
    return bound
