"""Submissions: how jobs come into the queue, and how many of them a user may have there."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import uuid_utils.compat
from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from baselayer.errors import ApiError, IdempotencyMismatch, LimitReached, NotAllowed

_USER_LOCK = 7200  # first key of the advisory lock that serialises what one user's submissions are counted against


@dataclass(frozen=True)
class NewJob:
    """A job to be stored, checked and complete."""

    id: uuid.UUID
    user_id: int
    name: str
    priority: int
    code: str
    shell: str
    args: list[str]
    env: dict[str, str]
    stdin: str
    timeout: float
    run_at: datetime | None
    retries: int
    retry_delay: float
    on_lost: str
    created_at: datetime
    deferred: bool

    @property
    def ord(self) -> int:
        """Its place among its owner's jobs: milliseconds of submission, less a minute per point of priority."""
        return int(self.created_at.timestamp() * 1000) - self.priority * 60_000


def new_job(user_id: int, request: Mapping[str, Any]) -> NewJob:
    """A job from a checked request (see `schemas.JobRequest`). Its id holds the time of submission."""
    job_id = uuid_utils.compat.uuid7()
    created = datetime.fromtimestamp((job_id.int >> 80) / 1000, UTC)
    run_at = request["run_at"]
    if request["delay"] is not None:
        run_at = created + timedelta(seconds=request["delay"])
    return NewJob(
        id=job_id,
        user_id=user_id,
        name=request["name"],
        priority=request["priority"],
        code=request["code"],
        shell=request["shell"],
        args=request["args"],
        env=request["env"],
        stdin=request["stdin"],
        timeout=request["timeout"],
        run_at=run_at,
        retries=request["retries"],
        retry_delay=request["retry_delay"],
        on_lost=request["on_lost"],
        created_at=created,
        deferred=run_at is not None and run_at > created,
    )


def request_again(row: Row[Any]) -> dict[str, Any]:
    """The request that made this job, to make another like it; what was to happen at a time happens at once."""
    names = ("name", "priority", "code", "shell", "args", "env", "stdin", "timeout")
    return {
        **{name: getattr(row, name) for name in (*names, "retries", "retry_delay", "on_lost")},
        "run_at": None,
        "delay": None,
    }


@dataclass(frozen=True)
class Submission:
    """Jobs that one request wants stored: all or none of them."""

    user_id: int
    jobs: Sequence[NewJob]
    key: str | None = None
    digest: bytes = b""


@dataclass(frozen=True)
class Limits:
    """What a user may use; also the defaults of users who have no limits of their own."""

    max_running: int
    max_queued: int
    jobs_per_minute: int


def submit(session: Session, submissions: Sequence[Submission], defaults: Limits) -> list[list[uuid.UUID] | Exception]:
    """Store what is asked for; return, for each submission, its job ids or why it was refused.

    A submission with an Idempotency-Key seen before gets the ids of then, or `IdempotencyMismatch`.
    """
    wanted: Counter[int] = Counter()
    for item in submissions:
        wanted[item.user_id] += len(item.jobs)
    budgets = _budgets(session, wanted, defaults)
    known = _known_keys(session, submissions)
    results: list[list[uuid.UUID] | Exception] = []
    jobs: list[NewJob] = []
    keys: list[dict[str, Any]] = []
    for item in submissions:
        name = (item.user_id, item.key)
        if item.key is not None and name in known:
            digest, ids = known[name]
            results.append(ids if digest == item.digest else IdempotencyMismatch())
            continue
        if refusal := budgets[item.user_id].take(len(item.jobs)):
            results.append(refusal)
            continue
        ids = [job.id for job in item.jobs]
        jobs.extend(item.jobs)
        if item.key is not None:
            known[name] = (item.digest, ids)
            keys.append({"user_id": item.user_id, "key": item.key, "digest": item.digest, "ids": ids})
        results.append(ids)
    _insert_jobs(session, jobs, budgets)
    for row in keys:
        session.execute(
            text(
                "INSERT INTO idempotency_key (user_id, key, request_digest, job_ids)"
                " VALUES (:user_id, :key, :digest, CAST(:ids AS uuid[]))"
            ),
            {**row, "ids": [str(item) for item in row["ids"]]},
        )
    return results


def _known_keys(
    session: Session, submissions: Sequence[Submission]
) -> dict[tuple[int, str | None], tuple[bytes, list[uuid.UUID]]]:
    wanted = [(item.user_id, item.key) for item in submissions if item.key is not None]
    if not wanted:
        return {}
    rows = session.execute(
        text(
            "SELECT k.user_id, k.key, k.request_digest, k.job_ids FROM idempotency_key k"
            " JOIN unnest(CAST(:users AS int[]), CAST(:keys AS text[])) AS w(user_id, key) USING (user_id, key)"
        ),
        {"users": [user for user, _ in wanted], "keys": [key for _, key in wanted]},
    )
    return {(row.user_id, row.key): (bytes(row.request_digest), _uuids(row.job_ids)) for row in rows}


def _uuids(values: Any) -> list[uuid.UUID]:
    if isinstance(values, str):  # psycopg2 gives arrays of uuid as text
        values = [item for item in values.strip("{}").split(",") if item]
    return [uuid.UUID(str(item)) for item in values]


_MINUTE = "floor(extract(epoch FROM now()) / 60)::int"
_SECOND = "extract(second FROM now())"


@dataclass
class _Budget:
    """What one user may still submit."""

    active: bool
    queued: int
    recent: int
    limits: Limits
    taken: int = 0

    def take(self, count: int) -> ApiError | None:
        if not self.active:
            return NotAllowed("This user is not active.")
        if self.queued + count > self.limits.max_queued:
            return LimitReached(
                f"You may have {self.limits.max_queued} jobs queued; {self.queued} are.", retry_after=10
            )
        if self.recent + count > self.limits.jobs_per_minute:
            return LimitReached(
                f"You may submit {self.limits.jobs_per_minute} jobs a minute; you did {self.recent}.", retry_after=5
            )
        self.queued += count
        self.recent += count
        self.taken += count
        return None


def _budgets(session: Session, wanted: Mapping[int, int], defaults: Limits) -> dict[int, _Budget]:
    """What the users that want so many jobs may still submit; until the end of the transaction nobody else does.

    The queue is counted, and only where it might be full (see `SubmissionCount`): for an exact counter all claims and
    cancels of a user would wait for its row.

    Submissions of the last minute are: those of this minute by the clock, and of the one before as much as the last
    sixty seconds reach into it.
    """
    rows = session.execute(
        text(
            # Two statements on one way to the server. The second sees all that was there when the locks were had.
            f"""
            SELECT pg_advisory_xact_lock(:key, u) FROM (SELECT unnest(CAST(:users AS int[])) AS u ORDER BY 1) AS s;
            SELECT u.id, u.active, lim.max_running, lim.max_queued, lim.jobs_per_minute,
              CASE WHEN c.queued + w.jobs <= lim.max_queued THEN c.queued ELSE
                (SELECT count(*) FROM (SELECT FROM ready_job q WHERE q.user_id = u.id LIMIT lim.max_queued + 1) AS r)
                + (SELECT count(*) FROM (SELECT FROM deferred_job q WHERE q.user_id = u.id
                                         LIMIT lim.max_queued + 1) AS d) END AS queued,
              coalesce(CASE {_MINUTE} - c.minute
                WHEN 0 THEN c.submitted + c.before * (1 - {_SECOND} / 60)
                WHEN 1 THEN c.submitted * (1 - {_SECOND} / 60) END, 0)::int AS recent
            FROM unnest(CAST(:users AS int[]), CAST(:jobs AS int[])) AS w(user_id, jobs)
            JOIN "user" u ON u.id = w.user_id LEFT JOIN user_limits l ON l.user_id = u.id
            LEFT JOIN submission_count c ON c.user_id = u.id
            CROSS JOIN LATERAL (SELECT coalesce(l.max_running, :max_running) AS max_running,
                                       coalesce(l.max_queued, :max_queued) AS max_queued,
                                       coalesce(l.jobs_per_minute, :jobs_per_minute) AS jobs_per_minute) AS lim
            """
        ),
        {**asdict(defaults), "users": list(wanted), "jobs": list(wanted.values()), "key": _USER_LOCK},
    )
    return {
        row.id: _Budget(
            row.active, row.queued, row.recent, Limits(row.max_running, row.max_queued, row.jobs_per_minute)
        )
        for row in rows
    }


_JOB_COLUMNS = (
    "id uuid, user_id int, name text, priority smallint, code text, shell text, args jsonb, env jsonb, stdin text,"
    " timeout float8, run_at timestamptz, retries smallint, retry_delay float8, on_lost text, created_at timestamptz"
)
_JOB_NAMES = ", ".join(column.split()[0] for column in _JOB_COLUMNS.split(", "))
# One parameter, whatever the number of rows: the statement is constant, and JSON is what both sides parse fastest.
_INSERT_JOBS = text(
    f"""
    WITH new AS MATERIALIZED (
      SELECT * FROM json_to_recordset(CAST(:rows AS json)) AS r({_JOB_COLUMNS}, ord bigint, deferred boolean)),
    stored AS (INSERT INTO job ({_JOB_NAMES}, modified) SELECT {_JOB_NAMES}, created_at FROM new),
    later AS (INSERT INTO deferred_job (job_id, user_id, ord, run_at)
              SELECT id, user_id, ord, run_at FROM new WHERE deferred),
    ready AS (INSERT INTO ready_job (job_id, user_id, ord)
              SELECT id, user_id, ord FROM new WHERE NOT deferred RETURNING 1),
    counted AS (INSERT INTO submission_count AS c (user_id, minute, submitted, before, queued)
                SELECT user_id, {_MINUTE}, taken, 0, queued
                FROM json_to_recordset(CAST(:counts AS json)) AS r(user_id int, taken int, queued int)
                ON CONFLICT (user_id) DO UPDATE SET minute = excluded.minute, queued = excluded.queued,
                  submitted = excluded.submitted + CASE WHEN c.minute = excluded.minute THEN c.submitted ELSE 0 END,
                  before = CASE excluded.minute - c.minute WHEN 0 THEN c.before WHEN 1 THEN c.submitted ELSE 0 END)
    SELECT pg_notify('ready', '') WHERE EXISTS (SELECT FROM ready)
    """
)


def _insert_jobs(session: Session, jobs: Sequence[NewJob], budgets: Mapping[int, _Budget]) -> None:
    if jobs:
        rows = [{**vars(job), "ord": job.ord} for job in jobs]
        counts = [
            {"user_id": user_id, "taken": budget.taken, "queued": budget.queued}
            for user_id, budget in budgets.items()
            if budget.taken
        ]
        session.execute(_INSERT_JOBS, {"rows": orjson.dumps(rows).decode(), "counts": orjson.dumps(counts).decode()})


def lock_user(session: Session, user_id: int) -> None:
    """Wait until no submission of this user is under way, and let none begin before the end of this transaction."""
    session.execute(text("SELECT pg_advisory_xact_lock(:key, :user)"), {"key": _USER_LOCK, "user": user_id})


def usage(session: Session, user_id: int) -> Counter[str]:
    """How many jobs a user has running and queued now."""
    row = session.execute(
        text(
            "SELECT (SELECT count(*) FROM running_job WHERE user_id = :id),"
            " (SELECT count(*) FROM ready_job WHERE user_id = :id),"
            " (SELECT count(*) FROM deferred_job WHERE user_id = :id)"
        ),
        {"id": user_id},
    ).one()
    return Counter(running=row[0], queued=row[1] + row[2])
