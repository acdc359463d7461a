"""Which runners are live, and what becomes of the jobs of those that are not."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson
from sqlalchemy import text
from sqlalchemy.orm import Session

from shell_service.queue import Fenced, Result, fenced, finish, release

_CLAIM_LOCK = 7101  # the lock of claim_jobs
_MAX_LOST = 5  # times that a job is requeued after its runner was lost, beyond its retries: one may be the cause of it
_LOST_DELAY = 10.0  # seconds before a job of a lost runner is tried again, and again as long each further time


@dataclass(frozen=True)
class Running:
    """What the database knows of a running job, for its runner."""

    job_id: uuid.UUID
    fence: int
    incarnation: uuid.UUID
    started: bool
    cancel_requested: bool


def register(
    session: Session,
    host: str,
    name: str,
    incarnation: uuid.UUID,
    slots: int,
    obstacle: str | None,
    facts: Mapping[str, object],
) -> int:
    """Enter a runner that has just started, in place of its predecessor of the same name; return its id.

    `facts` are what holds for its jobs, see `shell_service.sandbox.Facts`.
    """
    runner_id: int | None = session.scalar(
        text(
            "INSERT INTO runner (host, name, incarnation, state, slots, obstacle, facts)"
            " VALUES (:host, :name, :incarnation, 'live', :slots, :obstacle, CAST(:facts AS jsonb))"
            " ON CONFLICT (host, name) DO UPDATE SET incarnation = :incarnation, state = 'live', slots = :slots,"
            " obstacle = :obstacle, facts = CAST(:facts AS jsonb),"
            " beat = runner.beat + 1, beat_at = now(), started_at = now() RETURNING id"
        ),
        {
            "host": host,
            "name": name,
            "incarnation": incarnation,
            "slots": slots,
            "obstacle": obstacle,
            "facts": orjson.dumps(facts).decode(),
        },
    )
    assert runner_id is not None
    return runner_id


def beat(
    session: Session,
    runner_id: int,
    incarnation: uuid.UUID,
    obstacle: str | None,
    state: str,
    facts: Mapping[str, object],
) -> bool:
    """Record that a runner is alive, and how it is; False when it has been declared gone or replaced."""
    session.execute(text("SET LOCAL synchronous_commit = off"))
    row = session.execute(
        text(
            "UPDATE runner SET beat = beat + 1, beat_at = now(), obstacle = :obstacle, state = :state,"
            " facts = CAST(:facts AS jsonb)"
            " WHERE id = :id AND incarnation = :incarnation AND state IN ('live', 'draining') RETURNING id"
        ),
        {
            "id": runner_id,
            "incarnation": incarnation,
            "obstacle": obstacle,
            "state": state,
            "facts": orjson.dumps(facts).decode(),
        },
    ).first()
    return row is not None


def running_of(session: Session, runner_id: int) -> list[Running]:
    """All jobs that stand as claimed by this runner, of whatever incarnation."""
    rows = session.execute(
        text(
            "SELECT job_id, fence, incarnation, started_at IS NOT NULL AS started,"
            " cancel_requested_at IS NOT NULL AS cancel_requested FROM running_job WHERE runner_id = :id"
        ),
        {"id": runner_id},
    )
    return [Running(row.job_id, row.fence, row.incarnation, row.started, row.cancel_requested) for row in rows]


def lose(session: Session, runner_id: int, attempts: Sequence[Fenced], runner: str, reason: str) -> None:
    """Settle claims whose runner went away: back to the queue where the script never began, or its owner wants that.

    All others end NODE_FAIL, with `reason`.
    """
    release(session, attempts)
    rows = session.execute(
        text(
            "SELECT r.job_id, r.fence, j.on_lost = 'requeue' AND r.attempt <= j.retries + :most AS again, r.attempt"
            " FROM running_job r JOIN job j ON j.id = r.job_id"
            " JOIN unnest(CAST(:ids AS uuid[]), CAST(:fences AS bigint[])) AS d(job_id, fence)"
            " ON r.job_id = d.job_id AND r.fence = d.fence WHERE r.runner_id = :runner"
        ),
        {**fenced(attempts), "runner": runner_id, "most": _MAX_LOST},
    )
    results = [
        Result(
            row.job_id,
            row.fence,
            "NODE_FAIL",
            reason,
            runner,
            retry_in=_LOST_DELAY * row.attempt if row.again else None,
        )
        for row in rows
    ]
    if results:
        finish(results).on(session)


def heartbeats(session: Session) -> dict[int, tuple[uuid.UUID, int]]:
    """Incarnation and heartbeat count of each runner that has not been declared gone."""
    rows = session.execute(text("SELECT id, incarnation, beat FROM runner WHERE state <> 'gone'"))
    return {row.id: (row.incarnation, row.beat) for row in rows}


def expire(session: Session, runner_id: int, incarnation: uuid.UUID, last_beat: int) -> bool:
    """Declare a runner gone unless it has beaten since `last_beat`, and settle its jobs; whether it was declared."""
    session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CLAIM_LOCK})
    name = session.scalar(
        text(
            "UPDATE runner SET state = 'gone' WHERE id = :id AND incarnation = :incarnation AND beat = :beat"
            " AND state <> 'gone' RETURNING name"
        ),
        {"id": runner_id, "incarnation": incarnation, "beat": last_beat},
    )
    if name is None:
        return False
    attempts = [Fenced(item.job_id, item.fence) for item in running_of(session, runner_id)]
    lose(session, runner_id, attempts, name, "the runner stopped answering; how the script ended is not known")
    return True


def leave(session: Session, runner_id: int, incarnation: uuid.UUID) -> None:
    """Record that a runner ends in good order, and give back claims that it never came to.

    Where a script began whose result is not known here, the runner counts as silent: its journal may know more.
    """
    session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CLAIM_LOCK})  # no claim is under way
    ours = [item for item in running_of(session, runner_id) if item.incarnation == incarnation]
    release(session, [Fenced(item.job_id, item.fence) for item in ours])
    session.execute(
        text(
            "UPDATE runner SET state = CASE WHEN EXISTS (SELECT FROM running_job WHERE runner_id = :id)"
            " THEN 'draining' ELSE 'gone' END WHERE id = :id AND incarnation = :incarnation"
        ),
        {"id": runner_id, "incarnation": incarnation},
    )
