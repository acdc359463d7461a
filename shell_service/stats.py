"""Figures: how many jobs there are in each status, how long the queue has waited, who runs."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from shell_service.jobs import first_id_of
from shell_service.models import MAX_RETRY_DELAY, STATUSES

_DAY_MS = 86_400_000


def stats(session: Session, user_id: int | None) -> dict[str, Any]:
    """Figures about one user's jobs, or about all when `user_id` is None.

    Jobs that have ended are counted over the last 24 hours, so the cost does not grow with history.
    """
    since = first_id_of(time.time_ns() // 1_000_000 - _DAY_MS)
    rows = session.execute(
        text(
            """
            SELECT status, count(*) AS n FROM job
            WHERE id >= :since AND status IS NOT NULL AND (:user IS NULL OR user_id = :user) GROUP BY status
            UNION ALL
            SELECT CASE WHEN started_at IS NULL THEN 'PENDING' ELSE 'RUNNING' END, count(*) FROM running_job
            WHERE :user IS NULL OR user_id = :user GROUP BY 1
            UNION ALL
            SELECT 'PENDING', count(*) FROM ready_job WHERE :user IS NULL OR user_id = :user
            UNION ALL
            SELECT 'PENDING', count(*) FROM deferred_job WHERE :user IS NULL OR user_id = :user
            """.replace(":user", "CAST(:user AS int)")
        ),
        {"since": since, "user": user_id},
    )
    counts = dict.fromkeys(STATUSES, 0)
    for row in rows:
        counts[row.status] += row.n
    return {"jobs": counts, "oldest_ready_seconds": _oldest(session, user_id), "runners": _runners(session)}


def _oldest(session: Session, user_id: int | None) -> float | None:
    """For how many seconds the job that starts next could have started; of all users' next jobs, the longest.

    A job waits from when it was submitted, from its `run_at`, or from when its next attempt was due. One look into the
    index for each user who has jobs, so the cost does not grow with the jobs that wait.
    """
    waited: float | None = session.scalar(_OLDEST, {"user": user_id, "longest": MAX_RETRY_DELAY})
    return None if waited is None else max(0.0, waited)


_OLDEST = text(
    """
    WITH RECURSIVE next AS (
      (SELECT user_id, job_id FROM ready_job WHERE :user IS NULL OR user_id = :user
       ORDER BY user_id, ord, job_id LIMIT 1)
      UNION ALL
      SELECT more.* FROM next CROSS JOIN LATERAL (
        SELECT q.user_id, q.job_id FROM ready_job q WHERE :user IS NULL AND q.user_id > next.user_id
        ORDER BY q.user_id, q.ord, q.job_id LIMIT 1) AS more)
    SELECT max(extract(epoch FROM clock_timestamp() - greatest(
      j.created_at, j.run_at, CASE WHEN j.attempt > 0 THEN j.modified + make_interval(
        secs => least(:longest, j.retry_delay * 2.0 ^ least(j.attempt - 1, 30))) END)))::float8
    FROM next JOIN job j ON j.id = next.job_id
    """.replace(":user", "CAST(:user AS int)").replace(":longest", "CAST(:longest AS float8)")
)


def runners(session: Session) -> list[dict[str, Any]]:
    """The runners that are up, with what holds for the jobs that they run."""
    rows = session.execute(
        text("SELECT host, name, state, obstacle, facts FROM runner WHERE state <> 'gone' ORDER BY host, name")
    )
    return [
        {
            **{name: getattr(row, name) for name in ("host", "name", "state", "obstacle")},
            **{name: row.facts.get(name) for name in ("sandbox", "uids", "limits", "network")},
        }
        for row in rows
    ]


def _runners(session: Session) -> list[dict[str, Any]]:
    rows = session.execute(
        text(
            "SELECT r.name, r.state, r.slots, count(j.job_id) AS running FROM runner r"
            " LEFT JOIN running_job j ON j.runner_id = r.id WHERE r.state <> 'gone' GROUP BY r.id ORDER BY r.name"
        )
    )
    return [dict(row._mapping) for row in rows]
