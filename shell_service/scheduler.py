"""The scheduler: what has to happen because time passes.

Several may run: whatever is done here is right even if two do it at once.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Never

from sqlalchemy import text
from sqlalchemy.orm import Session

from baselayer.database import Database, on_behalf_of
from baselayer.failpoint import FailPoints
from baselayer.waiting import repeat
from shell_service import firing, liveness, packages, queue, retention, seals, submissions, tokens, uploads, users
from shell_service.courier import Courier
from shell_service.retention import Cut
from shell_service.secrets import Keyring
from shell_service.settings import Settings
from shell_service.uploads import UploadStore

logger = logging.getLogger(__name__)

_HOUSEKEEPING_SECONDS = 60.0
_NOTIFY_SECONDS = 1.0
_SEAL_SECONDS = 2.0
_RETENTION_SECONDS = 1800.0
_PAUSE = 0.05  # seconds between steps that remove jobs: others come in between
_PROMOTE = 1000
_FIRE_SECONDS = 0.0005  # that firing one schedule takes, until it is known better
_MOMENT = 0.05  # seconds after which is looked again whether what another scheduler fires is still due
_HOLD = 10.0  # seconds for which at most its job is held while others are fired
_AT_ONCE = 10_000  # keys that one statement forgets


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


async def _duty(act: Callable[[], Awaitable[object]], what: str) -> Never:
    """Do `act` again and again; those that ask the database for much keep no other duty waiting."""
    on_behalf_of.set(what)
    await repeat(act, what)


class Scheduler:
    """One scheduler process."""

    def __init__(self, settings: Settings, database: Database, keyring: Keyring, failpoints: FailPoints) -> None:
        self._courier = Courier(database, keyring, settings.webhooks, failpoints)
        self._failpoints = failpoints
        self._marked: seals.Mark | None = None  # up to where the audit log is to be sealed
        self._limits = submissions.default_limits(settings)
        self._settings = settings
        self._database = database
        self._reaper = Reaper(settings.runner.lost_after)
        self._uploads = UploadStore(settings.upload_dir, settings.uploads, settings.runner.min_free)
        self._shards = itertools.cycle(range(256))

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set."""
        async with asyncio.TaskGroup() as group:
            duties = [
                group.create_task(_duty(self._promote, "letting jobs become ready")),
                group.create_task(_duty(self._fire, "firing schedules")),
                group.create_task(_duty(self._look_at_runners, "looking for runners that are gone")),
                group.create_task(_duty(self._keep_house, "keeping house")),
                group.create_task(_duty(self._notify, "telling webhooks")),
                group.create_task(_duty(self._retain, "removing old jobs")),
                group.create_task(_duty(self._seal, "sealing the audit log")),
            ]
            await stop.wait()
            for duty in duties:
                duty.cancel()

    async def _promote(self) -> None:
        due = await self._database.fetch(queue.any_due())
        if not due or await self._database.ask(queue.promote, _PROMOTE) < _PROMOTE:
            await asyncio.sleep(self._settings.scheduler.tick_seconds)

    async def _fire(self) -> None:
        wait = await self._database.fetch(firing.seconds_until_due(self._settings.scheduler.tick_seconds))
        if wait > 0:
            await asyncio.sleep(wait)
            return
        parts = await self._database.ask(firing.due)
        began, each = time.monotonic(), _FIRE_SECONDS
        fired, done, left = 0, 0, sum(len(part.ids) for part in parts)
        for part in parts:
            done, left = done + len(part.ids), left - len(part.ids)
            fired += await self._database.run(self._fire_some, part.ids, min(_HOLD, left * each) if part.held else 0.0)
            each = (time.monotonic() - began) / done
            self._failpoints.reach("scheduler.fired")
        if not fired:  # another scheduler fires them just now
            await asyncio.sleep(_MOMENT)

    def _fire_some(self, session: Session, ids: Sequence[int], hold: float) -> int:
        self._failpoints.reach("scheduler.before_fire")
        settings = self._settings
        grace = settings.schedules.grace_seconds
        fired = firing.fire(session, ids, self._limits, settings.jobs, grace, hold)
        self._failpoints.reach("scheduler.before_commit")
        return fired

    async def _look_at_runners(self) -> None:
        await asyncio.sleep(self._settings.runner.heartbeat_seconds / 2)
        try:
            silent = self._reaper.observe(await self._database.ask(liveness.heartbeats))
        except Exception:
            self._reaper.forget()
            raise
        for runner, incarnation, beat in silent:
            if await self._database.run(liveness.expire, runner, incarnation, beat):
                seconds = self._settings.runner.lost_after
                logger.error("runner %d has been silent for %g s: declared gone", runner, seconds)

    async def _notify(self) -> None:
        if not await self._courier.round():
            await asyncio.sleep(_NOTIFY_SECONDS)

    async def _retain(self) -> None:
        await asyncio.sleep(_RETENTION_SECONDS)
        options = self._settings.retention
        removed = await self._remove(await self._database.ask(retention.by_age, options))
        for user_id in await self._database.ask(retention.users, options):
            removed += await self._remove(await self._database.ask(retention.by_size, options, user_id))
        if removed:
            logger.info("removed %d jobs that were kept for long enough", removed)

    async def _remove(self, cut: Cut | None) -> int:
        removed, last = 0, None
        while cut is not None:
            step = await self._database.run(retention.remove_some, cut, last)
            removed += step.removed
            if step.last is None:
                break
            last = step.last
            await asyncio.sleep(_PAUSE)
        return removed

    async def _seal(self) -> None:
        self._marked = self._marked or await self._database.fetch(seals.mark())
        if self._marked is not None and await self._database.run(seals.seal, self._marked):
            self._marked = None
        await asyncio.sleep(_SEAL_SECONDS)

    async def _keep_house(self) -> None:
        while await self._database.ask(_forget_keys, self._settings.jobs.idempotency_seconds) == _AT_ONCE:
            pass
        while await self._database.ask(users.cancel_of_inactive):
            pass
        await self._database.ask(tokens.remove_expired)
        while await self._database.run(uploads.collect, self._uploads):
            pass
        await self._database.ask(uploads.sweep, self._uploads, next(self._shards))
        options = self._settings.packages
        await asyncio.to_thread(packages.remove_old, self._settings.layer_dir, options.keep_days, options.total_size)
        await self._database.ask(_vacuum)
        await asyncio.sleep(_HOUSEKEEPING_SECONDS)


def _forget_keys(session: Session, seconds: float) -> int:
    old = session.execute(
        text(
            "DELETE FROM idempotency_key WHERE ctid IN (SELECT ctid FROM idempotency_key"
            " WHERE created_at < now() - make_interval(secs => :seconds) LIMIT :limit) RETURNING 1"
        ),
        {"seconds": seconds, "limit": _AT_ONCE},
    )
    return len(old.all())


def _vacuum(session: Session) -> None:
    """Clear the dead rows from the head of the queue, which claims would walk over again and again.

    As River and Que advise for queues in PostgreSQL: by the clock, besides autovacuum.
    """
    session.execute(text("VACUUM (SKIP_LOCKED) ready_job, running_job, deferred_job"))
