"""Figures: how many jobs there are in each status, how long the queue has waited, who runs."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from shell_service.jobs import first_id_of
from shell_service.models import STATUSES

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
    where = "" if user_id is None else "WHERE user_id = :user"
    oldest = session.scalar(text(f"SELECT min(job_id::text) FROM ready_job {where}"), {"user": user_id})
    if oldest is None:
        return None
    return max(0.0, time.time() - (int(oldest.replace("-", "")[:12], 16)) / 1000)


def _runners(session: Session) -> list[dict[str, Any]]:
    rows = session.execute(
        text(
            "SELECT r.name, r.state, r.slots, count(j.job_id) AS running FROM runner r"
            " LEFT JOIN running_job j ON j.runner_id = r.id WHERE r.state <> 'gone' GROUP BY r.id ORDER BY r.name"
        )
    )
    return [dict(row._mapping) for row in rows]
