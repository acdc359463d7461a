"""What a job is for the peers: the same command, its output read, no walls around it."""

from __future__ import annotations

import subprocess


def hello() -> str:
    """Run the command, return what it printed."""
    return subprocess.run(
        ["/bin/sh", "-c", "echo hello"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    ).stdout
