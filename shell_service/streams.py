"""Following a job's output while it is written.

The files are the truth: a follower looks whether they have grown. All followers of a process look at the same moments,
a few times a second and only while somebody follows, so the database is not asked. They share the way to the thread
that reads, so it works as well over a shared file system, which may take its time, as on one host. What was sent is
counted in bytes of the file, so a follower can go on where another ended.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

from baselayer.errors import InvalidRequest
from shell_service.hub import Hub, Watch
from shell_service.jobs import Found
from shell_service.output import CHUNK, STREAMS, OutputReader, Stream

TICK_SECONDS = 0.05  # followers learn of new bytes within 100 ms; this leaves as much for the way
HEARTBEAT_SECONDS = 15.0
_RECHECK_SECONDS = 0.4  # how often a reader's right to read on is looked at


def now_and_then(check: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """`check`, but done only where the last time, or the call of this, was `_RECHECK_SECONDS` ago."""
    checked = time.monotonic()

    async def check_if_due() -> None:
        nonlocal checked
        if time.monotonic() - checked > _RECHECK_SECONDS:
            await check()
            checked = time.monotonic()

    return check_if_due


class Ticker:
    """Wakes those who ask for it at the next tick, and ticks only while somebody asks."""

    def __init__(self, seconds: float = TICK_SECONDS) -> None:
        self._seconds = seconds
        self._asked = asyncio.Event()
        self._sleepers: set[Watch] = set()

    def wake(self, watch: Watch) -> None:
        """Wake `watch` at the next tick."""
        self._sleepers.add(watch)
        self._asked.set()

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            await self._asked.wait()
            await asyncio.sleep(self._seconds)
            self._asked.clear()
            sleepers, self._sleepers = self._sleepers, set()
            for watch in sleepers:
                watch.wake()


@dataclass(frozen=True)
class Position:
    """Up to where a follower has got: an attempt, and bytes of each of its streams. ``2-100-0`` as text."""

    attempt: int = 0
    stdout: int = 0
    stderr: int = 0

    _FORM = re.compile(r"(\d{1,5})-(\d{1,15})-(\d{1,15})", re.ASCII)

    @classmethod
    def parse(cls, text: str | None) -> Position:
        """Raises `InvalidRequest` for what is not a position."""
        if not text:
            return cls()
        match = cls._FORM.fullmatch(text)
        if match is None:
            raise InvalidRequest("Last-Event-ID must be the id of an event of this stream, such as 1-0-0.")
        return cls(*map(int, match.groups()))

    def __str__(self) -> str:
        return f"{self.attempt}-{self.stdout}-{self.stderr}"

    def at(self, stream: Stream) -> int:
        return self.stdout if stream == "stdout" else self.stderr

    def moved(self, stream: Stream, count: int) -> Position:
        return replace(self, **{stream: self.at(stream) + count})


@dataclass(frozen=True)
class Event:
    """Something to tell a follower: new bytes of a stream, the job's state, its end, or just that we are here."""

    kind: str  # "stdout", "stderr", "status", "end", "heartbeat"
    position: Position
    job: Found
    data: bytes = b""


class Follower:
    """Follows one job for one reader."""

    def __init__(
        self,
        hub: Hub,
        ticker: Ticker,
        outputs: OutputReader,
        look: Callable[[], Awaitable[Found]],
        may_go_on: Callable[[], Awaitable[None]],
        streams: tuple[Stream, ...] = STREAMS,
        text: bool = False,
    ) -> None:
        """`look` finds the job anew; `may_go_on` raises when its reader may not see it any more.

        With `text`, bytes are cut between characters of UTF-8.
        """
        self._hub = hub
        self._ticker = ticker
        self._outputs = outputs
        self._look = look
        self._may_go_on = may_go_on
        self._streams = streams
        self._text = text

    async def events(self, start: Position) -> AsyncIterator[Event]:
        """Everything from `start` to the end of the job. Nothing is read ahead of the reader.

        Without an "end" when this process is to stop: the reader goes on elsewhere from where he is.
        """
        job = await self._look()
        position = start
        if position.attempt > job.attempt or (position.attempt == job.attempt and await self._ahead(job, position)):
            raise InvalidRequest("Last-Event-ID is ahead of what this job has printed.")
        with self._hub.watch(job.job_id) as watch:
            job = await self._look()
            told: tuple[str, int] | None = None
            may_go_on = now_and_then(self._may_go_on)
            spoke = time.monotonic()
            while not self._hub.closing:
                if position.attempt == 0:  # from the start of the attempt that runs, or the last that ran
                    position = Position(attempt=job.attempt)
                if told != (job.status, job.attempt) and not job.final:
                    told = (job.status, job.attempt)
                    spoke = time.monotonic()
                    yield Event("status", position, job)
                sent = False
                for stream, data in await self._news(job, position):
                    position = position.moved(stream, len(data))
                    sent = True
                    spoke = time.monotonic()
                    yield Event(stream, position, job, data)
                await may_go_on()
                if watch.changed:
                    watch.changed = False
                    job = await self._look()
                elif sent:
                    await asyncio.sleep(0)  # others have their turn
                elif position.attempt < job.attempt:  # only when all of the attempt before is sent
                    position = Position(attempt=position.attempt + 1)
                elif job.final:
                    yield Event("status", position, job)
                    yield Event("end", position, job)
                    return
                else:
                    if job.status == "RUNNING":
                        self._ticker.wake(watch)
                    await watch.wait(_RECHECK_SECONDS)
                    if time.monotonic() - spoke > HEARTBEAT_SECONDS:
                        spoke = time.monotonic()
                        yield Event("heartbeat", position, job)

    async def _ahead(self, job: Found, position: Position) -> bool:
        """Whether more was printed at `position` than there is."""
        sizes = [await self._outputs.size(job.job_id, position.attempt, stream) for stream in STREAMS]
        return any(position.at(stream) > size for stream, size in zip(STREAMS, sizes, strict=True))

    async def _news(self, job: Found, position: Position) -> list[tuple[Stream, bytes]]:
        """What of each stream is there beyond `position`, a piece of it at most."""
        complete = job.final or position.attempt < job.attempt
        positions = {stream: position.at(stream) for stream in self._streams}
        found = await self._outputs.beyond(job.job_id, position.attempt, positions)
        if self._text:
            for stream, data in found.items():
                if len(data) == CHUNK or not complete:
                    found[stream] = data[: whole_characters(data)]
        return [(stream, data) for stream, data in found.items() if data]


def whole_characters(data: bytes) -> int:
    """How many bytes of `data` to take so that no character of UTF-8 is cut at the end; all, if it is not UTF-8."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        need = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return len(data) - back if need > back else len(data)
    return len(data)
