"""What running jobs use, and the end of those that use more than they may.

Where the kernel does not hold a limit for a job as a whole, the runner looks. One thread looks at all jobs; one that
lives for less than 50 ms costs nothing. A job can be over its limit between two looks, which are therefore the closer
together the sooner it could get there.

No job can keep the others waiting: who has much to look at is looked at by a part at a time, and the others in between.
What a job is bound to have is found soon in each look; who has so much that the rest is not found in time is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from shell_service.limits import JobLimits

logger = logging.getLogger(__name__)

_FIRST = 0.05  # seconds until the first look
_SHORTEST, _LONGEST = 0.01, 0.2  # seconds between looks, as long as a look takes little
_SHARE = 0.05  # of a processor that looks at one job may take
_HURRY = 0.25  # the same, while not all of it has been seen
#: Seconds of processor time within which all of a job must have been seen, as half a million open files can be.
PATIENCE = 3.0


@dataclass(frozen=True)
class Usage:
    """What a job uses as a whole: processes and threads now, seconds of processor time so far, bytes of memory now."""

    processes: int = 0
    cpu_seconds: float = 0.0
    memory: int = 0
    #: Seconds for which it has been looked at without having seen all of its memory: it may be more.
    unseen: float = 0.0

    def most(self, other: Usage) -> Usage:
        """The larger of each."""
        return Usage(
            max(self.processes, other.processes),
            max(self.cpu_seconds, other.cpu_seconds),
            max(self.memory, other.memory),
        )

    def passed(self, limits: JobLimits) -> str | None:
        """The name of a limit that this is beyond; "looks" if it takes too long to tell."""
        if self.memory > limits.memory:
            return "memory"
        if self.processes > limits.processes:
            return "processes"
        if self.cpu_seconds >= limits.cpu_seconds:
            return "cpu_seconds"
        return "looks" if self.unseen > PATIENCE else None


class Source(Protocol):
    """Something that can tell what a job uses."""

    def read(self, enough: int, most: int) -> Usage:
        """What it uses now; where it takes effort to tell exactly, that is made for more memory than `enough`.

        Of one that has more processes than `most` that is told soon, and else little: nothing of processor time.

        It takes tens of milliseconds at most: as long as the answer's `unseen` is not 0, the next look goes on there.
        """

    def forget(self) -> None:
        """There will be no next look: lets go of what an unfinished one has open."""


class Gauge:
    """The thread that looks."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "gauge")

    def watch(self, source: Source, limits: JobLimits, on_passed: Callable[[str, Usage], None]) -> Watch:
        """Look at a job from now on, and tell once of a limit that it has passed: its name, and what was used then."""
        return Watch(self._thread, source, limits, on_passed)

    def close(self) -> None:
        """Look at nothing any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class Watch:
    """The looks at one job."""

    def __init__(
        self,
        thread: ThreadPoolExecutor,
        source: Source,
        limits: JobLimits,
        on_passed: Callable[[str, Usage], None],
    ) -> None:
        self.now = self.most = Usage()
        self._thread, self._source, self._limits, self._on_passed = thread, source, limits, on_passed
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_FIRST, self._begin)

    def stop(self) -> None:
        """What a look that is under way will tell is of no interest any more."""
        self._timer.cancel()
        if self._task:
            self._task.cancel()
        with contextlib.suppress(RuntimeError):  # the thread has ended
            self._thread.submit(self._source.forget)  # after a look that is under way

    def _begin(self) -> None:
        self._task = asyncio.create_task(self._look())

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        last, before = Usage(), time.monotonic() - _FIRST
        while True:
            try:
                usage, cost = await loop.run_in_executor(self._thread, _read, self._source, self._limits)
            except Exception:  # never expected; a job must not go unwatched for it
                logger.exception("looking at a job")
                usage, cost = last, 0.0
            self.now, self.most = usage, self.most.most(usage)
            if name := usage.passed(self._limits):
                return self._on_passed(name, usage)
            now = time.monotonic()
            wish = min(_LONGEST, _until(self._limits, last, usage, now - before) / 2)
            last, before = usage, now
            await asyncio.sleep(max(_SHORTEST, wish, cost / (_HURRY if usage.unseen else _SHARE)))


def _read(source: Source, limits: JobLimits) -> tuple[Usage, float]:
    """What a job uses, and how many seconds of processor time it took to see that."""
    began = time.thread_time()
    return source.read(limits.memory, limits.processes), time.thread_time() - began


def _until(limits: JobLimits, last: Usage, usage: Usage, seconds: float) -> float:
    """Seconds until a limit is reached, if all goes on as since the last look."""
    left = (
        (limits.memory - usage.memory, usage.memory - last.memory),
        (limits.processes - usage.processes, usage.processes - last.processes),
        (limits.cpu_seconds - usage.cpu_seconds, usage.cpu_seconds - last.cpu_seconds),
    )
    return min((room / growth * seconds for room, growth in left if growth > 0), default=_LONGEST)
