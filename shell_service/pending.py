"""What pending jobs wait for.

All answers say the same of a job: that it waits for a time or for others of its script, that no runner can take it,
that its owner runs as many as he may, or simply that it waits for a free slot. Only a job that was stored just now is
not asked what else its owner runs. Its position is counted for one job at a time: that costs more.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import and_, bindparam, func, select, text, tuple_
from sqlalchemy import types as sql
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from baselayer.fields import rfc3339
from shell_service.models import ReadyJob, Runner

BEING_STARTED = "is being started"
_FRESH_SECONDS = 1.0
_FAR = 100  # jobs of its owner ahead of a job, from where on its position is not counted any more


class Supply:
    """Whether runners are up that can take jobs: looked at when somebody asks, at most once a second."""

    def __init__(self, lost_after: float) -> None:
        """`lost_after` is for how many seconds a runner that says nothing counts as up."""
        self._lost_after = lost_after
        self._looked_at = -_FRESH_SECONDS
        self.problem: str | None = None  # why no job can start

    @property
    def waits_for(self) -> str:
        """What a job that may start waits for, as far as that does not depend on its owner."""
        return self.problem or "waiting for a free slot"

    @property
    def stale(self) -> bool:
        """Whether it is time to look again."""
        return time.monotonic() - self._looked_at >= _FRESH_SECONDS

    def look(self, session: Session) -> None:
        """Look again, unless that was just done."""
        if not self.stale:
            return
        self._looked_at = time.monotonic()
        fresh = Runner.beat_at > func.now() - func.make_interval(0, 0, 0, 0, 0, 0, self._lost_after)
        obstacles = session.scalars(select(Runner.obstacle).where(Runner.state == "live", fresh)).all()
        if not obstacles:
            self.problem = "no runner is up"
        elif all(obstacles):  # each says why it takes no jobs
            self.problem = "no runner can run jobs now; the operator's log says why"
        else:
            self.problem = None


_PLACES = text(
    """
    SELECT w.id, d.run_at = 'infinity' AS in_turn, d.run_at, d.attempt, q.user_id FROM unnest(:ids) AS w(id)
    LEFT JOIN deferred_job d ON d.job_id = w.id LEFT JOIN ready_job q ON q.job_id = w.id
    """
).bindparams(bindparam("ids", type_=ARRAY(sql.Uuid)))
_FULL = text(
    """
    SELECT id, running FROM (
      SELECT w.id, (SELECT count(*) FROM running_job r WHERE r.user_id = w.id) AS running,
        coalesce((SELECT l.max_running FROM user_limits l WHERE l.user_id = w.id), :max_running) AS most
      FROM unnest(:users) AS w(id)) AS u
    WHERE running >= most
    """
).bindparams(bindparam("users", type_=ARRAY(sql.Integer)))


@dataclass(frozen=True)
class Reason:
    """What a job waits for, as its owner and as others are told."""

    to_owner: str
    to_others: str


def reasons(session: Session, ids: Sequence[uuid.UUID], supply: Supply, max_running: int) -> dict[uuid.UUID, Reason]:
    """For each of these pending jobs, what it waits for. `max_running` is the limit of users who have none."""
    if not ids:
        return {}
    supply.look(session)
    places = session.execute(_PLACES, {"ids": list(ids)}).all()
    ready = {place.user_id for place in places if place.user_id is not None}
    full: dict[int, int] = {}
    if ready and not supply.problem:
        rows = session.execute(_FULL, {"users": list(ready), "max_running": max_running})
        full = {row.id: row.running for row in rows}
    found = {}
    for place in places:
        if place.user_id in full:
            count = full[place.user_id]
            found[place.id] = Reason(f"you already run {count} jobs", f"its owner already runs {count} jobs")
            continue
        if place.in_turn:
            reason = "waiting for its turn among the jobs of its script"
        elif place.run_at is not None:
            start = f"attempt {place.attempt + 1} starts" if place.attempt else "starts"
            reason = f"{start} at {rfc3339(place.run_at)}"
        else:
            reason = BEING_STARTED if place.user_id is None else supply.waits_for
        found[place.id] = Reason(reason, reason)
    return found


def position(session: Session, job_id: uuid.UUID) -> int | None:
    """How many jobs the fair share starts before this one, plus 1; None when it is far back, or cannot start yet.

    With r jobs of its owner ahead of it, each other user gets up to r in before it (users take turns).
    """
    ready = session.execute(select(ReadyJob.user_id, ReadyJob.ord).where(ReadyJob.job_id == job_id)).first()
    if ready is None:
        return None
    earlier = and_(
        ReadyJob.user_id == ready.user_id,
        tuple_(ReadyJob.ord, ReadyJob.job_id) < tuple_(bindparam("ord"), bindparam("job")),
    )
    ahead: int | None = session.scalar(
        select(func.count()).select_from(select(ReadyJob.job_id).where(earlier).limit(_FAR + 1).subquery()),
        {"ord": ready.ord, "job": job_id},
    )
    if ahead is None or ahead > _FAR:
        return None
    others: int | None = session.scalar(
        text(
            """
            WITH RECURSIVE other(user_id) AS (
              (SELECT user_id FROM ready_job ORDER BY user_id LIMIT 1)
              UNION ALL
              SELECT (SELECT q.user_id FROM ready_job q WHERE q.user_id > o.user_id ORDER BY q.user_id LIMIT 1)
              FROM other o WHERE o.user_id IS NOT NULL)
            SELECT coalesce(sum(n), 0) FROM (SELECT user_id FROM other WHERE user_id <> :user LIMIT :far) AS o,
              LATERAL (SELECT count(*) AS n FROM
                (SELECT FROM ready_job q WHERE q.user_id = o.user_id LIMIT :ahead) AS c) AS c
            """
        ),
        {"user": ready.user_id, "ahead": ahead, "far": _FAR * 10},
    )
    return 1 + ahead + int(others or 0)
