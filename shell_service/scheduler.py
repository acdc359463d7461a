"""The scheduler: what has to happen because time passes.

Several may run: whatever is done here is right even if two do it at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from baselayer.database import Database
from baselayer.errors import Unavailable
from shell_service import queue
from shell_service.settings import Settings

logger = logging.getLogger(__name__)

_HOUSEKEEPING_SECONDS = 60.0
_PROMOTE = 1000


@dataclass
class _Seen:
    """A runner's last heartbeat, and when we first saw it on our own clock."""

    incarnation: uuid.UUID
    beat: int
    since: float


class Reaper:
    """Notices runners that have stopped answering, by their heartbeat counts and its own monotonic clock alone.

    No host's wall clock matters. Whenever the database could not be asked, everybody gets his full time again; also
    after a pause in which we did not look, as whatever stopped us, such as a database that hung, may have stopped them.
    """

    def __init__(self, lost_after: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`lost_after` in seconds."""
        self._lost_after = lost_after
        self._clock = clock
        self._looked = clock()
        self._seen: dict[int, _Seen] = {}

    def forget(self) -> None:
        """Give everybody his full time again."""
        self._seen.clear()

    def observe(self, beats: dict[int, tuple[uuid.UUID, int]]) -> list[tuple[int, uuid.UUID, int]]:
        """Take the heartbeats of now; returns the runners (id, incarnation, beat) that have been silent too long."""
        now = self._clock()
        if now - self._looked > self._lost_after / 3:
            self.forget()
        self._looked = now
        self._seen = {runner: seen for runner, seen in self._seen.items() if runner in beats}
        silent = []
        for runner, (incarnation, beat) in beats.items():
            seen = self._seen.get(runner)
            if seen is None or (seen.incarnation, seen.beat) != (incarnation, beat):
                self._seen[runner] = _Seen(incarnation, beat, now)
            elif now - seen.since > self._lost_after:
                silent.append((runner, incarnation, beat))
        return silent


class Scheduler:
    """One scheduler process."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._reaper = Reaper(settings.runner.lost_after)
        self._looked_at_runners = self._kept_house = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set."""
        while not stop.is_set():
            try:
                await self._tick()
            except Unavailable:
                self._reaper.forget()
            try:
                async with asyncio.timeout(self._settings.scheduler.tick_seconds):
                    await stop.wait()
            except TimeoutError:
                pass

    async def _tick(self) -> None:
        while await self._database.ask(queue.promote, _PROMOTE) == _PROMOTE:
            pass
        if time.monotonic() - self._looked_at_runners > self._settings.runner.heartbeat_seconds / 2:
            self._looked_at_runners = time.monotonic()
            await self._look_at_runners()
        if time.monotonic() - self._kept_house > _HOUSEKEEPING_SECONDS:
            self._kept_house = time.monotonic()
            await self._database.ask(_forget_keys, self._settings.jobs.idempotency_seconds)
            await self._database.ask(_vacuum)

    async def _look_at_runners(self) -> None:
        for runner, incarnation, beat in self._reaper.observe(await self._database.ask(queue.heartbeats)):
            if await self._database.run(queue.expire, runner, incarnation, beat):
                logger.error(
                    "runner %d has been silent for %g s: declared gone", runner, self._settings.runner.lost_after
                )


def _forget_keys(session: Session, seconds: float) -> None:
    session.execute(
        text(
            "DELETE FROM idempotency_key WHERE ctid IN (SELECT ctid FROM idempotency_key"
            " WHERE created_at < now() - make_interval(secs => :seconds) LIMIT 10000)"
        ),
        {"seconds": seconds},
    )


def _vacuum(session: Session) -> None:
    """Clear the dead rows from the head of the queue, which claims would walk over again and again.

    As River and Que advise for queues in PostgreSQL: by the clock, besides autovacuum.
    """
    session.execute(text("VACUUM (SKIP_LOCKED) ready_job, running_job, deferred_job"))
