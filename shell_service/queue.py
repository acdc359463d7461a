"""The queue: every move of a job between its states, as functions over a database session.

::

    submit ─→ ready ⇄ deferred          cancel: from any of them
                │ claim    ↑ release, retry, requeue
                ↓          │
             running ──────┘
                │ finish
                ↓
              final

Each function is one transaction's work. Writes about a running job carry the fence of its claim, so a runner that was
cut off changes nothing. Whoever may be waiting is told by NOTIFY: channel ``ready`` (jobs may start), ``cancel`` (a
job's id), ``job`` (``S`` or ``F`` and the hex ids of jobs that started or ended).
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, TypeVar

import orjson
from sqlalchemy import text
from sqlalchemy.orm import Session

from baselayer.errors import ApiError, IdempotencyMismatch, LimitReached, NotAllowed

T = TypeVar("T")

_USER_LOCK = 7200  # first key of the advisory lock that serialises what one user's submissions are counted against
_CLAIM_LOCK = 7101  # the lock of claim_jobs
_MAX_LOST = 5  # times that a job is requeued after its runner was lost, beyond its retries: one may be the cause of it
_LOST_DELAY = 10.0  # seconds before a job of a lost runner is tried again, and again as long each further time
_NOTIFY_IDS = 200  # hex ids of 32 characters that fit into one payload of 8,000 bytes


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


def first_id_of(milliseconds: int) -> uuid.UUID:
    """The lowest UUID of version 7 made at `milliseconds` since the epoch (RFC 9562, section 5.7)."""
    return uuid.UUID(int=(milliseconds << 80) | (7 << 76) | (2 << 62))


def _notify(session: Session, channel: str, payload: str) -> None:
    session.execute(text("SELECT pg_notify(:channel, :payload)"), {"channel": channel, "payload": payload})


def _tell_of(session: Session, letter: str, ids: Iterable[uuid.UUID]) -> None:
    hexes = [job_id.hex for job_id in ids]
    for start in range(0, len(hexes), _NOTIFY_IDS):
        _notify(session, "job", letter + ",".join(hexes[start : start + _NOTIFY_IDS]))


@dataclass(frozen=True)
class Claim:
    """A job that a runner has claimed, with all that it takes to run it."""

    job_id: uuid.UUID
    user_id: int
    attempt: int
    fence: int
    name: str
    code: str
    shell: str
    args: list[str]
    env: dict[str, str]
    stdin: str
    timeout: float
    retries: int
    retry_delay: float


def claim(
    session: Session, runner_id: int, incarnation: uuid.UUID, count: int, cursor: int, max_running: int
) -> list[Claim]:
    """Claim up to `count` jobs; see claim_jobs in the migrations for how they are chosen.

    Raises a database error with code SH001 when the runner is not live any more.
    """
    rows = session.execute(
        text(
            "SELECT c.job_id, c.user_id, c.attempt, c.fence"
            " FROM claim_jobs(:runner, :incarnation, :count, :cursor, :max_running) AS c"
        ),
        {
            "runner": runner_id,
            "incarnation": incarnation,
            "count": count,
            "cursor": cursor,
            "max_running": max_running,
        },
    ).all()
    session.commit()  # so that the lock is not held while scripts of a megabyte travel
    if not rows:
        return []
    claimed = {row.job_id: row for row in rows}
    details = session.execute(
        text(
            "SELECT id, name, code, shell, args, env, stdin, timeout, retries, retry_delay FROM job"
            " WHERE id = ANY(CAST(:ids AS uuid[]))"
        ),
        {"ids": [str(row.job_id) for row in rows]},
    )
    claims = {
        row.id: Claim(
            row.id,
            claimed[row.id].user_id,
            claimed[row.id].attempt,
            claimed[row.id].fence,
            row.name,
            row.code,
            row.shell,
            row.args,
            row.env,
            row.stdin,
            row.timeout,
            row.retries,
            row.retry_delay,
        )
        for row in details
    }
    return [claims[row.job_id] for row in rows]


@dataclass(frozen=True)
class Fenced:
    """A running job, by the claim of it."""

    job_id: uuid.UUID
    fence: int


def mark_started(session: Session, attempts: Sequence[Fenced]) -> list[bool]:
    """Record that these scripts are about to begin; for each, whether it may.

    It may not when the claim is not valid any more, or the job is to be cancelled. Asking again, when it is not known
    whether the first time counted, gives the same answer.
    """
    started: set[int] = set()
    for some in _parts(attempts):
        started.update(session.scalar(_MARK_STARTED, _fenced(some)) or ())
    return [attempt.fence in started for attempt in attempts]


_MARK_STARTED = text(
    """
    WITH started AS (
      UPDATE running_job r SET started_at = coalesce(r.started_at, clock_timestamp())
      FROM unnest(CAST(:ids AS uuid[]), CAST(:fences AS bigint[])) AS d(job_id, fence)
      WHERE r.job_id = d.job_id AND r.fence = d.fence AND r.cancel_requested_at IS NULL
      RETURNING r.job_id, r.fence)
    SELECT array_agg(fence), pg_notify('job', 'S' || string_agg(replace(job_id::text, '-', ''), ','))
    FROM started HAVING count(*) > 0
    """
)


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """`items` in parts that one notification can name."""
    return (items[start : start + _NOTIFY_IDS] for start in range(0, len(items), _NOTIFY_IDS))


def _fenced(attempts: Sequence[Fenced]) -> dict[str, Any]:
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
    max_rss_bytes: int | None = None
    stdout_bytes: int | None = None
    stderr_bytes: int | None = None
    output_truncated: bool | None = None
    retry_in: float | None = None


_RESULT_COLUMNS = (
    "status text, reason text, runner text, return_code int, signal text, wall_seconds float8, cpu_seconds float8,"
    " max_rss_bytes bigint, stdout_bytes bigint, stderr_bytes bigint, output_truncated boolean"
)
_RESULT_NAMES = [column.split()[0] for column in _RESULT_COLUMNS.split(", ")]
_FINISH = text(
    f"""
    WITH ended AS MATERIALIZED (
      SELECT * FROM json_to_recordset(CAST(:rows AS json))
        AS r(job_id uuid, fence bigint, retry_in float8, {_RESULT_COLUMNS})),
    gone AS (
      DELETE FROM running_job r USING ended e WHERE r.job_id = e.job_id AND r.fence = e.fence
      RETURNING r.job_id, r.fence, r.user_id, r.ord, r.attempt, r.started_at, r.cancelled_by,
                CASE WHEN r.cancel_requested_at IS NULL THEN e.retry_in END AS retry_in),
    again AS (
      INSERT INTO deferred_job (job_id, user_id, ord, run_at, attempt)
      SELECT job_id, user_id, ord, clock_timestamp() + make_interval(secs => retry_in), attempt
      FROM gone WHERE retry_in IS NOT NULL),
    told AS (
      UPDATE job j SET attempt = g.attempt, modified = statement_timestamp(),
        finished_at = CASE WHEN g.retry_in IS NULL THEN statement_timestamp() END,
        started_at = CASE WHEN g.retry_in IS NULL THEN g.started_at END,
        cancelled_by = CASE WHEN e.status = 'CANCELLED' THEN g.cancelled_by END,
        reason = CASE WHEN g.retry_in IS NOT NULL THEN NULL
                      WHEN e.status = 'CANCELLED' THEN 'cancelled by ' || g.cancelled_by ELSE e.reason END,
        {", ".join(f"{name} = CASE WHEN g.retry_in IS NULL THEN e.{name} END" for name in _RESULT_NAMES[2:])},
        status = CASE WHEN g.retry_in IS NULL THEN e.status END
      FROM gone g JOIN ended e ON e.job_id = g.job_id AND e.fence = g.fence
      WHERE j.id = g.job_id AND j.status IS NULL
      RETURNING j.id, g.fence, g.retry_in IS NULL AS final)
    SELECT array_agg(fence), CASE WHEN bool_or(final) THEN
      pg_notify('job', 'F' || string_agg(replace(id::text, '-', ''), ',') FILTER (WHERE final)) END
    FROM told HAVING count(*) > 0
    """
)


def finish(session: Session, results: Sequence[Result]) -> list[bool]:
    """Record how attempts ended; for each, whether it counted. The same results again change nothing."""
    counted: set[int] = set()
    for some in _parts(results):
        rows = orjson.dumps([vars(item) for item in some]).decode()
        counted.update(session.scalar(_FINISH, {"rows": rows}) or ())
    return [item.fence in counted for item in results]


def release(session: Session, attempts: Sequence[Fenced], certain: bool = False) -> list[bool]:
    """Give back claims whose scripts never began: to the queue, or to their end where a cancel was asked for.

    For each, whether it counted. A script of which a start is recorded is released only by whoever is `certain` that
    it never was let go.
    """
    rows = session.execute(
        text(
            """
            WITH gone AS (
              DELETE FROM running_job r
              USING unnest(CAST(:ids AS uuid[]), CAST(:fences AS bigint[])) AS d(job_id, fence)
              WHERE r.job_id = d.job_id AND r.fence = d.fence AND (r.started_at IS NULL OR :certain)
              RETURNING r.job_id, r.fence, r.user_id, r.ord, r.attempt, r.cancel_requested_at, r.cancelled_by),
            back AS (
              INSERT INTO ready_job (job_id, user_id, ord, attempt)
              SELECT job_id, user_id, ord, attempt - 1 FROM gone WHERE cancel_requested_at IS NULL),
            ended AS (
              UPDATE job j SET status = 'CANCELLED', reason = 'cancelled by ' || g.cancelled_by,
                cancelled_by = g.cancelled_by, finished_at = statement_timestamp(), modified = statement_timestamp()
              FROM gone g WHERE j.id = g.job_id AND g.cancel_requested_at IS NOT NULL AND j.status IS NULL)
            SELECT job_id, fence, cancel_requested_at IS NOT NULL AS cancelled FROM gone
            """
        ),
        {**_fenced(attempts), "certain": certain},
    ).all()
    _tell_of(session, "F", (row.job_id for row in rows if row.cancelled))
    if rows:
        _notify(session, "ready", "")
    counted = {row.fence for row in rows}
    return [item.fence in counted for item in attempts]


def cancel(session: Session, job_ids: Sequence[uuid.UUID], by: str) -> None:
    """End the waiting among these jobs, and ask the runners of the running ones to end them."""
    ids = {"ids": [str(job_id) for job_id in job_ids], "by": by}
    # A job may move between tables while we look; whoever was missed stands somewhere else at the next look.
    for _ in range(5):
        ended = session.execute(
            text(
                """
                WITH waiting AS (
                  DELETE FROM ready_job WHERE job_id = ANY(CAST(:ids AS uuid[])) RETURNING job_id),
                later AS (
                  DELETE FROM deferred_job WHERE job_id = ANY(CAST(:ids AS uuid[])) RETURNING job_id)
                UPDATE job j SET status = 'CANCELLED', reason = 'cancelled by ' || :by, cancelled_by = :by,
                  finished_at = statement_timestamp(), modified = statement_timestamp()
                FROM (SELECT job_id FROM waiting UNION ALL SELECT job_id FROM later) AS w
                WHERE j.id = w.job_id AND j.status IS NULL RETURNING j.id
                """
            ),
            ids,
        ).scalars()
        _tell_of(session, "F", list(ended))
        asked = session.execute(
            text(
                "UPDATE running_job SET cancel_requested_at = clock_timestamp(), cancelled_by = :by"
                " WHERE job_id = ANY(CAST(:ids AS uuid[])) AND cancel_requested_at IS NULL RETURNING job_id"
            ),
            ids,
        ).scalars()
        for job_id in asked:
            _notify(session, "cancel", job_id.hex)
        missed = session.scalar(
            text(
                "SELECT count(*) FROM job j WHERE j.id = ANY(CAST(:ids AS uuid[])) AND j.status IS NULL AND NOT EXISTS"
                " (SELECT FROM running_job r WHERE r.job_id = j.id AND r.cancel_requested_at IS NOT NULL)"
            ),
            ids,
        )
        if not missed:
            return


def lock_user(session: Session, user_id: int) -> None:
    """Wait until no submission of this user is under way, and let none begin before the end of this transaction."""
    session.execute(text("SELECT pg_advisory_xact_lock(:key, :user)"), {"key": _USER_LOCK, "user": user_id})


def promote(session: Session, limit: int = 1000) -> int:
    """Move up to `limit` jobs whose time has come from deferred to ready; return how many."""
    moved = session.execute(
        text(
            """
            WITH due AS (
              DELETE FROM deferred_job WHERE job_id IN (
                SELECT job_id FROM deferred_job WHERE run_at <= clock_timestamp() ORDER BY run_at, job_id
                LIMIT :limit FOR UPDATE SKIP LOCKED)
              RETURNING job_id, user_id, ord, attempt)
            INSERT INTO ready_job (job_id, user_id, ord, attempt) SELECT * FROM due RETURNING 1
            """
        ),
        {"limit": limit},
    )
    count = len(moved.all())
    if count:
        _notify(session, "ready", "")
    return count


# -- runners ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Running:
    """What the database knows of a running job, for its runner."""

    job_id: uuid.UUID
    fence: int
    incarnation: uuid.UUID
    started: bool
    cancel_requested: bool


def register(session: Session, host: str, name: str, incarnation: uuid.UUID, slots: int, sandbox: str | None) -> int:
    """Enter a runner that has just started, in place of its predecessor of the same name; return its id."""
    runner_id: int | None = session.scalar(
        text(
            "INSERT INTO runner (host, name, incarnation, state, slots, sandbox)"
            " VALUES (:host, :name, :incarnation, 'live', :slots, :sandbox)"
            " ON CONFLICT (host, name) DO UPDATE SET incarnation = :incarnation, state = 'live', slots = :slots,"
            " sandbox = :sandbox, beat = runner.beat + 1, beat_at = now(), started_at = now() RETURNING id"
        ),
        {"host": host, "name": name, "incarnation": incarnation, "slots": slots, "sandbox": sandbox},
    )
    assert runner_id is not None
    return runner_id


def beat(session: Session, runner_id: int, incarnation: uuid.UUID, sandbox: str | None, state: str) -> bool:
    """Record that a runner is alive, and its `state`; False when it has been declared gone or replaced."""
    session.execute(text("SET LOCAL synchronous_commit = off"))
    row = session.execute(
        text(
            "UPDATE runner SET beat = beat + 1, beat_at = now(), sandbox = :sandbox, state = :state"
            " WHERE id = :id AND incarnation = :incarnation AND state IN ('live', 'draining') RETURNING id"
        ),
        {"id": runner_id, "incarnation": incarnation, "sandbox": sandbox, "state": state},
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
        {**_fenced(attempts), "runner": runner_id, "most": _MAX_LOST},
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
        finish(session, results)


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
