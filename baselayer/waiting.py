"""Waiting with a limit, and doing what has to be done in spite of errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Never, TypeVar

from baselayer.errors import Unavailable

R = TypeVar("R")

logger = logging.getLogger(__name__)

_FIRST_PAUSE = 0.05  # seconds
_LONGEST_PAUSE = 2.0


async def wait_for(event: asyncio.Event, seconds: float) -> bool:
    """Wait until `event` is set, but at most so many `seconds`; returns whether it is."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
    return event.is_set()


async def insist(act: Callable[[], Awaitable[R]], what: str, longest: float = _LONGEST_PAUSE) -> R:
    """Do `act` until it succeeds, and return its result. Each error is followed by a pause, up to `longest` seconds.

    An outage (`Unavailable`) has been logged by whoever noticed it; all other errors are logged here, `what` being
    what could not be done. So `act` must be such that it can be done again when it failed halfway.
    """
    pause = _FIRST_PAUSE
    while True:
        try:
            return await act()
        except Unavailable:
            pass
        except Exception:
            logger.exception("%s failed, and is tried again", what)
        await asyncio.sleep(pause)
        pause = min(2 * pause, longest)


async def repeat(act: Callable[[], Awaitable[object]], what: str, longest: float = _LONGEST_PAUSE) -> Never:
    """Do `act` again and again, until cancelled, whatever errors it ends with (see `insist`)."""
    while True:
        await insist(act, what, longest)
