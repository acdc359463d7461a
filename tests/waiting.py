"""Waiting for conditions, with a deadline: what tests do instead of sleeping."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: How many times slower this machine is than one of those that the tests are for.
SLOWNESS = float(os.environ.get("SLOWNESS", "1"))


def eventually(check: Callable[[], T], seconds: float = 20.0, every: float = 0.02) -> T:
    """What `check` returns as soon as that is true; fails after `seconds`, naming the last value."""
    deadline = time.monotonic() + seconds * SLOWNESS
    while not (value := check()):
        assert time.monotonic() < deadline, f"still {value!r} after {seconds} s"
        time.sleep(every)
    return value
