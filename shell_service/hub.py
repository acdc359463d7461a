"""Tells those who wait in this process that a job has changed.

Notifications from the database wake them; a slow look at all that is waited for is the truth behind, so a lost
notification costs seconds, never an answer. Thousands may wait: each costs one `Watch`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text
from sqlalchemy.orm import Session

from baselayer.database import Database
from baselayer.waiting import repeat, wait_for

_POLL_SECONDS = 2.0
_POLL_IDS = 2000

State = tuple[bool, int | None]  # whether it has ended; the fence under which it runs


class Watch:
    """One who waits for a job: for any change, or only for its end."""

    def __init__(self, end_only: bool) -> None:
        self.end_only = end_only
        self.changed = False
        self._event = asyncio.Event()

    def tell(self) -> None:
        """The job may have started or ended."""
        self.changed = True
        self._event.set()

    def wake(self) -> None:
        """There is another reason to look."""
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Until told or woken, but at most so long."""
        await wait_for(self._event, seconds)
        self._event.clear()


class Hub:
    """The jobs that somebody in this process waits for."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watched: dict[uuid.UUID, set[Watch]] = {}
        self._states: dict[uuid.UUID, State] = {}
        self._poll_now = asyncio.Event()
        self._count = 0  # of those who watch
        self.closing = False

    def close(self) -> None:
        """Wake everybody for the last time: this process is to stop, and nobody should wait here any longer."""
        self.closing = True
        for watches in self._watched.values():
            for watch in watches:
                watch.wake()

    def __len__(self) -> int:
        return self._count

    @contextmanager
    def watch(self, job_id: uuid.UUID, end_only: bool = False) -> Iterator[Watch]:
        """Be told whenever this job may have started or ended, or only when it may have ended.

        Look at the job after entering: what happened before is not told.
        """
        watch = Watch(end_only)
        self._watched.setdefault(job_id, set()).add(watch)
        self._count += 1
        try:
            yield watch
        finally:
            self._count -= 1
            watches = self._watched[job_id]
            watches.discard(watch)
            if not watches:
                del self._watched[job_id]
                self._states.pop(job_id, None)

    def heard(self, payload: str) -> None:
        """Take a notification of channel ``job``: S or F, and ids in hex with commas between."""
        for item in payload[1:].split(","):
            self._tell(uuid.UUID(hex=item), ended=payload[0] == "F")

    def poll_now(self) -> None:
        """Look at all that is waited for, as notifications may have been lost."""
        self._poll_now.set()

    def _tell(self, job_id: uuid.UUID, ended: bool) -> None:
        for watch in self._watched.get(job_id, ()):
            if ended or not watch.end_only:
                watch.tell()

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        await repeat(self._look, "looking at the jobs that are waited for")

    async def _look(self) -> None:
        await wait_for(self._poll_now, _POLL_SECONDS)
        self._poll_now.clear()
        watched = list(self._watched)
        for start in range(0, len(watched), _POLL_IDS):
            states = await self._database.ask(_states, watched[start : start + _POLL_IDS])
            for job_id, state in states.items():
                if job_id in self._watched and self._states.get(job_id) != state:
                    self._states[job_id] = state
                    self._tell(job_id, ended=state[0])


def _states(session: Session, job_ids: list[uuid.UUID]) -> dict[uuid.UUID, State]:
    rows = session.execute(
        text(
            "SELECT j.id, j.status IS NOT NULL AS final, r.fence FROM job j"
            " LEFT JOIN running_job r ON r.job_id = j.id AND r.started_at IS NOT NULL"
            " WHERE j.id = ANY(CAST(:ids AS uuid[]))"
        ),
        {"ids": job_ids},
    )
    return {row.id: (row.final, row.fence) for row in rows}
