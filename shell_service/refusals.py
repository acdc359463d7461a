"""Refusals in the audit log: written in groups, behind the answers, and never more than the database should hold.

Each user, and all strangers together, may be told of so many times a minute. What is beyond that, or cannot be written
because too much waits or the database is away, is counted by user or address; a while later one entry with the outcome
`audit.DROPPED` says how many there were.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from baselayer.access import Throttle, network_of
from baselayer.batch import Batcher
from baselayer.database import Database
from baselayer.errors import Unavailable
from baselayer.waiting import repeat
from shell_service import audit
from shell_service.audit import Entry

_BY_USER = 60  # refusals a minute that are written one by one
_BY_STRANGERS = 600
_MOST_WAITING = 1000
_GROUP = 100
_COUNTED_SECONDS = 5  # after which what was only counted is written
_CLOSING_SECONDS = 3
_MOST_ACTORS = 100  # that are counted apart at a time

logger = logging.getLogger(__name__)


class Actor(NamedTuple):
    """Who was refused: a user, or for strangers their address."""

    user_id: int | None = None
    username: str | None = None
    address: str | None = None


class Refusals:
    """The refusals of one of `processes` that each answer as many requests."""

    def __init__(self, database: Database, processes: int = 1) -> None:
        self._database = database
        self._users = Throttle(_BY_USER / processes)
        self._strangers = Throttle(_BY_STRANGERS / processes)
        self._writer: Batcher[Entry, None] = Batcher(self._write, max_items=_GROUP, max_queue=_MOST_WAITING)
        self._writing: set[asyncio.Task[None]] = set()
        self._counted: Counter[Actor] = Counter()

    def note(self, entry: Entry) -> None:
        """Have `entry` written soon, or counted where there are too many."""
        throttle = self._strangers if entry.user_id is None else self._users
        if throttle.take(str(entry.user_id)):
            self.count(entry)
            return
        task = asyncio.create_task(self._put(entry))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    def count(self, entry: Entry) -> None:
        """Remember only that there was such an entry."""
        if entry.user_id is None:
            actor = Actor(address=network_of(entry.address or ""))
        else:
            actor = Actor(entry.user_id, entry.username)
        self._add(actor, 1)

    def _add(self, actor: Actor, number: int) -> None:
        known = actor in self._counted or len(self._counted) < _MOST_ACTORS
        self._counted[actor if known else Actor()] += number

    async def _put(self, entry: Entry) -> None:
        try:
            await self._writer.put(entry)
        except Unavailable:
            self.count(entry)
        except Exception:
            logger.exception("a refusal could not be written to the audit log")
            self.count(entry)

    async def _write(self, entries: Sequence[Entry]) -> list[None]:
        await self._database.fetch(audit.write(entries), stores=True)
        return [None] * len(entries)

    async def run(self) -> None:
        """Until cancelled: write now and then how many were only counted."""
        await repeat(self._wait_and_tell, "writing how many refusals were counted")

    async def _wait_and_tell(self) -> None:
        await asyncio.sleep(_COUNTED_SECONDS)
        await self._tell()

    async def _tell(self) -> None:
        counted, self._counted = self._counted, Counter()
        entries = [
            Entry(
                audit.REFUSALS,
                user_id=actor.user_id,
                username=actor.username,
                address=actor.address,
                outcome=audit.DROPPED,
                detail={"count": number},
            )
            for actor, number in counted.items()
        ]
        if not entries:
            return
        try:
            await self._write(entries)
        except BaseException:
            for actor, number in counted.items():
                self._add(actor, number)
            raise

    async def close(self) -> None:
        """Write what there is still, if that does not take long."""
        try:
            async with asyncio.timeout(_CLOSING_SECONDS):
                await asyncio.gather(*self._writing)
                await self._tell()
        except (TimeoutError, Unavailable):
            logger.warning("refusals are missing from the audit log: the database did not take them in time")
