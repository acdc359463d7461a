"""The queue: every move of a job between its states.

::

    submit ─→ ready ⇄ deferred          cancel: from any of them
                │ claim    ↑ release, retry, requeue
                ↓          │
             running ──────┘
                │ finish
                ↓
              final

Jobs of a script come to ready by way of deferred: they wait there for their time, then for their turn among the jobs of
their script. Whatever makes room for another lets it in (admit_jobs).

Each function is one transaction's work: over a session, or, where it is a single statement that is asked often, as a
query. Writes about a running job carry the fence of its claim, so a runner that was
cut off changes nothing. Whoever may be waiting is told by NOTIFY: channel ``ready`` (jobs may start), ``cancel`` (a
job's id), ``job`` (``S`` or ``F`` and the hex ids of jobs that started or ended).

How jobs come in is told in submissions.py, what becomes of those whose runner went away in liveness.py.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
from sqlalchemy import text
from sqlalchemy.orm import Session

from baselayer.query import Query, Rows, as_uuid
from shell_service.audit import Entry
from shell_service.limits import JobLimits

CANCEL_AT_ONCE = 500  # jobs: claims wait for the rows that a cancel holds


@dataclass(frozen=True)
class Claim:
    """A job that a runner has claimed, with all that it takes to run it."""

    limits: JobLimits
    job_id: uuid.UUID
    user_id: int
    attempt: int
    fence: int
    name: str
    code: str
    upload: str | None
    upload_kind: str | None
    entrypoint: str | None
    requirements: list[str] | None  # packages that its files name
    shell: str
    args: list[str]
    env: dict[str, str]
    stdin: str
    timeout: float
    retries: int
    retry_delay: float
    network: bool
    secrets: list[str]
    secrets_in_env: bool
    secret_env: dict[str, str]
    #: Whether its user may give jobs the network, by now.
    may_network: bool

    @property
    def secret_variables(self) -> dict[str, str]:
        """Names of secrets by those of the variables that hold them."""
        same = {name: name for name in self.secrets} if self.secrets_in_env else {}
        return {**same, **self.secret_env}

    @property
    def all_secrets(self) -> list[str]:
        """Names of all secrets that it is given."""
        return list(dict.fromkeys((*self.secrets, *self.secret_env.values())))


@dataclass(frozen=True)
class Place:
    """A claimed job, before its details are read."""

    job_id: uuid.UUID
    user_id: int
    attempt: int
    fence: int


def claim(runner_id: int, incarnation: uuid.UUID, count: int, cursor: int, max_running: int) -> Query[list[Place]]:
    """Claim up to `count` jobs; see claim_jobs in the migrations for how they are chosen.

    Fails with the database's error code SH001 when the runner is not live any more.
    """
    return Query(
        "SELECT job_id, user_id, attempt, fence FROM claim_jobs("
        "%(runner)s, %(incarnation)s, %(count)s, %(cursor)s, %(max_running)s)",
        {
            "runner": runner_id,
            "incarnation": str(incarnation),
            "count": count,
            "cursor": cursor,
            "max_running": max_running,
        },
        lambda rows: [Place(as_uuid(row[0]), *row[1:]) for row in rows],
    )


def claimed(places: Sequence[Place]) -> Query[list[Claim]]:
    """The details of claimed jobs: asked for when the claim is committed, so that its lock is not held meanwhile."""
    by_id = {place.job_id: place for place in places}

    def read(rows: Rows) -> list[Claim]:
        claims = {}
        for job_id, limits, *details in rows:
            place = by_id[as_uuid(job_id)]
            whose = (place.job_id, place.user_id, place.attempt, place.fence)
            claims[place.job_id] = Claim(JobLimits(**limits), *whose, *details)
        return [claims[place.job_id] for place in places]

    return Query(
        "SELECT id, limits, name, code, encode(upload, 'hex'),"
        " (SELECT u.kind FROM upload u WHERE u.digest = job.upload), entrypoint,"
        " (SELECT u.requirements FROM upload u WHERE u.digest = job.upload), shell, args, env, stdin, timeout,"
        " retries, retry_delay, network, secrets, secrets_in_env, secret_env,"
        " network AND EXISTS (SELECT FROM user_limits l WHERE l.user_id = job.user_id AND l.network)"
        " FROM job WHERE id = ANY(CAST(%(ids)s AS uuid[]))",
        {"ids": [place.job_id for place in places]},
        read,
        kept=True,
    )


@dataclass(frozen=True)
class Fenced:
    """A running job, by the claim of it."""

    job_id: uuid.UUID
    fence: int


def mark_started(attempts: Sequence[Fenced]) -> Query[list[bool]]:
    """Record that these scripts are about to begin; for each, whether it may.

    It may not when the claim is not valid any more, or the job is to be cancelled. Asking again, when it is not known
    whether the first time counted, gives the same answer.
    """
    return Query(
        "SELECT start_jobs(CAST(%(ids)s AS uuid[]), CAST(%(fences)s AS bigint[]))",
        fenced(attempts),
        partial(_counted, attempts),
    )


def _counted(attempts: Sequence[Fenced | Result], rows: Rows) -> list[bool]:
    """For each attempt whether its fence is in the answer."""
    fences = set(rows[0][0] or ())
    return [attempt.fence in fences for attempt in attempts]


def fenced(attempts: Sequence[Fenced]) -> dict[str, Any]:
    """Attempts as the parameters ``ids`` and ``fences`` of a statement."""
    return {"ids": [str(item.job_id) for item in attempts], "fences": [item.fence for item in attempts]}


@dataclass(frozen=True)
class Result:
    """How an attempt ended. `retry_in`, in seconds, asks for another one."""

    job_id: uuid.UUID
    fence: int
    status: str
    reason: str
    runner: str
    return_code: int | None = None
    signal: str | None = None
    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None
    written_bytes: int | None = None
    stdout_bytes: int | None = None
    stderr_bytes: int | None = None
    output_truncated: bool | None = None
    artifacts: int | None = None
    artifacts_bytes: int | None = None
    artifacts_truncated: bool | None = None
    retry_in: float | None = None


def finish(results: Sequence[Result]) -> Query[list[bool]]:
    """Record how attempts ended; for each, whether it counted. The same results again change nothing."""
    rows = orjson.dumps([vars(item) for item in results]).decode()
    return Query("SELECT finish_jobs(%(rows)s)", {"rows": rows}, partial(_counted, results))


def release(session: Session, attempts: Sequence[Fenced], certain: bool = False) -> list[bool]:
    """Give back claims whose scripts never began: to the queue, or to their end where a cancel was asked for.

    For each, whether it counted. A script of which a start is recorded is released only by whoever is `certain` that
    it never was let go.
    """
    counted = session.scalar(
        text("SELECT release_jobs(CAST(:ids AS uuid[]), CAST(:fences AS bigint[]), :certain)"),
        {**fenced(attempts), "certain": certain},
    )
    return _counted(attempts, [(counted,)])


def cancel(session: Session, job_ids: Sequence[uuid.UUID], by: str, audit: Entry | None = None) -> None:
    """End the waiting among these jobs, ask the runners of the running ones to end them, and write of it."""
    session.execute(
        text("SELECT cancel_jobs(CAST(:ids AS uuid[]), :by, CAST(:audit AS json[]))"),
        {"ids": [str(job_id) for job_id in job_ids], "by": by, "audit": [audit.dump()] if audit else []},
    )


def any_due() -> Query[bool]:
    """Whether there is anything for `promote` now."""
    statement = "SELECT EXISTS (SELECT FROM deferred_job WHERE run_at <= statement_timestamp())"
    return Query(statement, {}, lambda rows: bool(rows[0][0]), kept=True)


def promote(session: Session, limit: int = 1000) -> int:
    """Move up to `limit` jobs whose time has come on from there; return how many there were."""
    return session.scalar(text("SELECT promote_jobs(:limit)"), {"limit": limit}) or 0
