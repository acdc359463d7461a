"""Retention: which jobs go when, with what they left, and their going.

A job goes when it is older than the configuration allows, or when its owner's newer jobs have filled what each user may
keep of output, artifacts and files that jobs were given. Only jobs that have ended go, and none that is pinned. Records
go first, some hundreds in a transaction; their outputs are noted in the same, and removed behind that by a runner, who
alone may write there. For files that jobs were given see `uploads`.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from baselayer.access import Caller
from baselayer.errors import Conflict, NotAllowed
from shell_service import jobs, submissions
from shell_service.settings import Retention

AT_ONCE = 500  # jobs of a transaction
_NIL = uuid.UUID(int=0)
# What a job keeps. Files that it was given count with the newest of its owner's jobs that were given them.
_BYTES = """
  coalesce(stdout_bytes, 0) + coalesce(stderr_bytes, 0) + coalesce(artifacts_bytes, 0) + CASE WHEN upload IS NULL THEN 0
  WHEN EXISTS (SELECT FROM job n WHERE n.user_id = job.user_id AND n.upload = job.upload AND n.id > job.id) THEN 0
  ELSE (SELECT u.size FROM upload u WHERE u.digest = job.upload) END
"""


@dataclass(frozen=True)
class Cut:
    """Jobs up to and with this id may go, if they ended before a time: of one user, or of all."""

    last: uuid.UUID
    ended: datetime
    user_id: int | None = None


def by_age(session: Session, options: Retention) -> Cut | None:
    """What may go for its age. A job that was submitted long ago, and ended just now, stays for as long again."""
    if not options.job_days:
        return None
    return Cut(_oldest(session, options), _now(session) - timedelta(days=options.job_days))


def users(session: Session, options: Retention) -> list[int]:
    """Whose jobs have to be looked at for their size: in turn, as that reads an index of all that they keep."""
    return list(session.scalars(text('SELECT id FROM "user" ORDER BY id'))) if options.user_size else []


def by_size(session: Session, options: Retention, user_id: int) -> Cut | None:
    """What may go of a user's, as his newer jobs fill what each may keep."""
    last = session.scalar(
        text(
            f"SELECT id FROM (SELECT id, sum({_BYTES}) OVER (ORDER BY id DESC) AS total FROM job"
            " WHERE user_id = :user) AS j WHERE total > :most ORDER BY id DESC LIMIT 1"
        ),
        {"user": user_id, "most": options.user_size},
    )
    return None if last is None else Cut(last, _now(session), user_id)


def _now(session: Session) -> datetime:
    now: datetime = session.execute(text("SELECT now()")).scalar_one()
    return now


def _oldest(session: Session, options: Retention) -> uuid.UUID:
    oldest = _now(session) - timedelta(days=options.job_days)
    return jobs.first_id_of(max(0, int(oldest.timestamp() * 1000)))


@dataclass(frozen=True)
class Step:
    """What one transaction removed, and where the next goes on; None: there is nothing more."""

    removed: int
    last: uuid.UUID | None


def remove_some(session: Session, cut: Cut, after: uuid.UUID | None) -> Step:
    """Remove some of the jobs that may go, those behind the id `after`."""
    session.execute(text("SET LOCAL enable_seqscan = off"))
    session.execute(text("SET LOCAL synchronous_commit = off"))  # what is lost of it is done again
    order = "user_id, id" if cut.user_id is not None else "id"
    user = "user_id = :user AND" if cut.user_id is not None else ""
    row = session.execute(
        text(
            f"""
            WITH part AS MATERIALIZED (
              SELECT id FROM job WHERE {user} id > :after AND id <= :last ORDER BY {order} LIMIT :most),
            gone AS (
              DELETE FROM job WHERE id = ANY (ARRAY(SELECT id FROM part)) AND status IS NOT NULL AND NOT pinned
                AND finished_at <= :ended
              RETURNING id, attempt),
            told AS (DELETE FROM delivery WHERE job_id IN (SELECT id FROM gone)),
            noted AS (INSERT INTO discarded (job_id, attempt) SELECT id, attempt FROM gone WHERE attempt > 0)
            SELECT (SELECT count(*) FROM gone) AS removed, count(*) AS seen,
              (SELECT id FROM part ORDER BY id DESC LIMIT 1) AS last FROM part
            """
        ),
        {"after": after or _NIL, "last": cut.last, "most": AT_ONCE, "user": cut.user_id, "ended": cut.ended},
    ).one()
    return Step(row.removed, row.last if row.seen == AT_ONCE else None)


# -- outputs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Discarded:
    """A job that is no more, and how many attempts it had."""

    job_id: uuid.UUID
    attempts: int


def discarded(session: Session) -> list[Discarded]:
    """Some jobs whose outputs are to be removed."""
    rows = session.execute(text("SELECT job_id, attempt FROM discarded LIMIT :most"), {"most": AT_ONCE})
    return [Discarded(row.job_id, row.attempt) for row in rows]


def forget(session: Session, items: Sequence[Discarded]) -> None:
    """Note that the outputs of these are gone."""
    session.execute(
        text("DELETE FROM discarded WHERE job_id = ANY (CAST(:ids AS uuid[]))"),
        {"ids": [str(item.job_id) for item in items]},
    )


# -- what people see and do --------------------------------------------------------------------------------------------


def pin(session: Session, caller: Caller, text_id: str, pinned: bool, most: int) -> None:
    """Let a job stay whatever its age, or no longer. Raises `NotFound`, `NotAllowed`, and `Conflict` for too many."""
    found = jobs.find(session, caller, text_id)
    owner: int = found.row.user_id
    if owner != caller.user_id and not caller.is_admin:
        raise NotAllowed("Only its owner can pin a job.")
    if pinned:
        submissions.lock_user(session, owner)
        count = session.scalar(
            text("SELECT count(*) FROM job WHERE user_id = :user AND pinned AND id <> :id"),
            {"user": owner, "id": found.job_id},
        )
        if (count or 0) >= most:
            raise Conflict(f"One may have {most} pinned jobs, and they are there; unpin one that is not needed.")
    session.execute(text("UPDATE job SET pinned = :pinned WHERE id = :id"), {"pinned": pinned, "id": found.job_id})


def outlook(session: Session, options: Retention) -> list[dict[str, Any]]:
    """For each user with jobs: how many there are with how many bytes of output, and what would go now."""
    cut = by_age(session, options) or Cut(_NIL, _now(session))
    rows = session.execute(
        text(
            f"""
            SELECT u.username, count(*) AS jobs, sum(bytes) AS bytes, count(*) FILTER (WHERE pinned) AS pinned,
              count(*) FILTER (WHERE old) AS old,
              count(*) FILTER (WHERE goes AND NOT old AND total > :most) AS beyond,
              coalesce(sum(bytes) FILTER (WHERE old OR (goes AND total > :most)), 0) AS freed
            FROM (
              SELECT id, user_id, pinned, status IS NOT NULL AND NOT pinned AS goes, {_BYTES} AS bytes,
                NOT pinned AND coalesce(finished_at <= :ended, false) AND id <= :oldest AS old,
                sum({_BYTES}) OVER (PARTITION BY user_id ORDER BY id DESC) AS total FROM job) AS j
            JOIN "user" u ON u.id = j.user_id GROUP BY u.username ORDER BY 3 DESC, 1
            """
        ),
        {"oldest": cut.last, "ended": cut.ended, "most": options.user_size or 2**62},
    )
    return [dict(row._mapping) for row in rows]
