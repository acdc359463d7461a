"""Services that nobody waits for give way to those that answer requests."""

from __future__ import annotations

import os

#: Above 0, which all others have, and below what jobs have.
NICE = 5


def give_way() -> None:
    """To be called before there are threads."""
    os.setpriority(os.PRIO_PROCESS, 0, NICE)
