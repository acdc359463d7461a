"""Jobs as their users see them: ids, requests turned into jobs, records, lists."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Row,
    Select,
    SQLColumnExpression,
    and_,
    bindparam,
    column,
    func,
    select,
    text,
    tuple_,
)
from sqlalchemy import types as sql
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from baselayer.access import Caller
from baselayer.errors import NotFound
from baselayer.fields import rfc3339
from baselayer.models import User
from baselayer.visibility import Viewer, visible
from shell_service.models import DeferredJob, Job, ReadyJob, Runner, RunningJob
from shell_service.output import OutputStore, Stream
from shell_service.submissions import NewJob

RECORD_TAIL = 64 * 1024  # bytes of each stream in a record
LIST_TAIL = 1024  # bytes of each stream, and characters of code, in lists
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)  # what ids hold
_FAR = 100  # jobs of its owner ahead of a job, from where on its position is not counted any more

_ID = re.compile(r"([A-Za-z0-9._-]{1,100})_([0-9a-f]{32})", re.ASCII)


def public_id(name: str, job_id: uuid.UUID) -> str:
    """The id that users see: ``<name>_<32 hex digits>``."""
    return f"{name}_{job_id.hex}"


def parse_id(text: str) -> tuple[str, uuid.UUID]:
    """Name and id of a public id. Raises `NotFound` when it is not one, as for a job that is not there."""
    match = _ID.fullmatch(text)
    if match is None:
        raise NotFound
    return match[1], uuid.UUID(match[2])


def first_id_of(milliseconds: int) -> uuid.UUID:
    """The lowest UUID of version 7 made at `milliseconds` since the epoch (RFC 9562, section 5.7)."""
    return uuid.UUID(int=(milliseconds << 80) | (7 << 76) | (2 << 62))


@dataclass(frozen=True)
class Found:
    """A job that its caller may see: the row, and where it stands."""

    row: Row[Any]

    @property
    def job_id(self) -> uuid.UUID:
        job_id: uuid.UUID = self.row.id
        return job_id

    @property
    def public_id(self) -> str:
        return public_id(self.row.name, self.row.id)

    @property
    def status(self) -> str:
        return self.row.final_status or ("RUNNING" if self.row.running_since else "PENDING")

    @property
    def final(self) -> bool:
        return self.row.final_status is not None

    @property
    def attempt(self) -> int:
        """The attempt that the record tells of: the one that runs, or the last that ran."""
        running = self.row.running_since is not None and self.row.running_attempt
        attempt: int = running or self.row.attempt
        return attempt


def _wide(code: SQLColumnExpression[str], *more: SQLColumnExpression[Any]) -> Select[*tuple[Any, ...]]:
    """Everything that a record is made of, `code` as given, and more."""
    names = (
        "id, user_id, name, priority, shell, args, env, timeout, run_at, retries, retry_delay, on_lost,"
        " created_at, modified, attempt, reason, return_code, signal, finished_at, stdout_bytes, stderr_bytes,"
        " output_truncated, wall_seconds, cpu_seconds, max_rss_bytes, cancelled_by"
    )
    columns = [getattr(Job, name.strip()) for name in names.split(",")]
    return (
        select(
            *columns,
            code.label("code"),
            *more,
            Job.status.label("final_status"),
            User.username,
            func.coalesce(Job.started_at, RunningJob.started_at).label("started_at"),
            RunningJob.started_at.label("running_since"),
            RunningJob.attempt.label("running_attempt"),
            RunningJob.job_id.is_not(None).label("claimed"),
            func.coalesce(Job.runner, Runner.name).label("runner"),
        )
        .join(User, User.id == Job.user_id)
        .outerjoin(RunningJob, RunningJob.job_id == Job.id)
        .outerjoin(Runner, Runner.id == RunningJob.runner_id)
    )


_WANTED: FromClause = (
    func.unnest(
        bindparam("ids", type_=ARRAY(sql.Uuid)),
        bindparam("users", type_=ARRAY(sql.Integer)),
        bindparam("admins", type_=ARRAY(sql.Boolean)),
    )
    .table_valued(column("id", sql.Uuid), column("user_id", sql.Integer), column("is_admin", sql.Boolean))
    .render_derived(name="wanted")
)
_FETCH = (
    _wide(Job.code, Job.stdin)
    .add_columns(_WANTED.c.user_id.label("for_user"))
    .join(_WANTED, _WANTED.c.id == Job.id)
    .where(visible(Job, Viewer(_WANTED.c.user_id, _WANTED.c.is_admin)))
)


def find_many(session: Session, wanted: Sequence[tuple[Caller, uuid.UUID]]) -> list[Found | None]:
    """For each caller and id, the job, or None where there is none that this caller may see."""
    rows = session.execute(
        _FETCH,
        {
            "ids": [job_id for _, job_id in wanted],
            "users": [caller.user_id for caller, _ in wanted],
            "admins": [caller.is_admin for caller, _ in wanted],
        },
    )
    found = {(row.for_user, row.id): Found(row) for row in rows}
    return [found.get((caller.user_id, job_id)) for caller, job_id in wanted]


def find(session: Session, caller: Caller, text_id: str) -> Found:
    """The job of this public id, for this caller. Raises `NotFound`.

    Whatever is done with a job on somebody's behalf is done with what this returns.
    """
    name, job_id = parse_id(text_id)
    found = find_many(session, [(caller, job_id)])[0]
    if found is None or found.row.name != name:
        raise NotFound
    return found


def record(found: Found, caller: Caller, outputs: OutputStore, tail: int = RECORD_TAIL) -> dict[str, Any]:
    """What the API tells of a job, with the last `tail` bytes of its output. Reads files: not for the event loop."""
    row = found.row
    begun = row.started_at is not None
    own = row.user_id == caller.user_id
    sizes: dict[Stream, int | None] = {"stdout": row.stdout_bytes, "stderr": row.stderr_bytes}
    texts: dict[Stream, str | None] = {"stdout": None, "stderr": None}
    if begun:
        for stream, size in sizes.items():
            texts[stream] = outputs.tail(row.id, found.attempt, stream, tail, size)
            if size is None:  # it still runs
                sizes[stream] = outputs.size(row.id, found.attempt, stream)
    return {
        "id": found.public_id,
        "name": row.name,
        "submitter_id": row.user_id,
        "submitter": row.username,
        "status": found.status,
        "reason": row.reason,
        "code": row.code,
        "shell": row.shell,
        "args": row.args,
        "env": row.env if own else dict.fromkeys(row.env),
        "timeout": row.timeout,
        "priority": row.priority,
        "retries": row.retries,
        "retry_delay": row.retry_delay,
        "on_lost": row.on_lost,
        "attempt": found.attempt,
        "created_at": rfc3339(row.created_at),
        "modified": rfc3339(max(row.modified, row.running_since or row.modified)),
        "run_at": rfc3339(row.run_at),
        "started_at": rfc3339(row.started_at),
        "finished_at": rfc3339(row.finished_at),
        "return_code": row.return_code,
        "signal": row.signal,
        "stdout": texts["stdout"],
        "stderr": texts["stderr"],
        "stdout_bytes": sizes["stdout"],
        "stderr_bytes": sizes["stderr"],
        "output_truncated": row.output_truncated,
        "wall_seconds": row.wall_seconds,
        "cpu_seconds": row.cpu_seconds,
        "max_rss_bytes": row.max_rss_bytes,
        "runner": row.runner,
        "cancelled_by": row.cancelled_by,
        "position": None,
        "pending_reason": "is being started" if row.claimed and found.status == "PENDING" else None,
    }


_AS_ASKED = (
    *("name", "code", "shell", "args", "env", "timeout", "priority"),
    *("retries", "retry_delay", "on_lost"),
)
_NOT_YET = (
    *("reason", "started_at", "finished_at", "return_code", "signal"),
    *("stdout", "stderr", "stdout_bytes", "stderr_bytes", "output_truncated"),
    *("wall_seconds", "cpu_seconds", "max_rss_bytes", "runner", "cancelled_by", "position"),
)


def new_record(job: NewJob, caller: Caller) -> dict[str, Any]:
    """The record of a job that has just been stored."""
    values = vars(job)
    at = rfc3339(job.run_at)
    return {
        "id": public_id(job.name, job.id),
        "submitter_id": job.user_id,
        "submitter": caller.username,
        "status": "PENDING",
        "attempt": 0,
        "created_at": rfc3339(job.created_at),
        "modified": rfc3339(job.created_at),
        "run_at": at,
        "pending_reason": f"starts at {at}" if job.deferred else "waiting for a free slot",
        **{name: values[name] for name in _AS_ASKED},
        **dict.fromkeys(_NOT_YET),
    }


# -- lists -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filter:
    """Which jobs a list, or a cancel of many, is about."""

    status: str | None = None
    name: str | None = None
    submitter: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None

    def conditions(self, caller: Caller) -> list[ColumnElement[bool]]:
        """As SQL, over `Job` and an outer-joined `RunningJob`; always includes what `caller` may see."""
        running = RunningJob.started_at.is_not(None)
        found = [visible(Job, caller.viewer)]
        if not caller.is_admin:
            found.append(Job.user_id == caller.user_id)  # said plainly, so that the index on user_id serves
        if self.status == "RUNNING":
            found += [Job.status.is_(None), running]
        elif self.status == "PENDING":
            found += [Job.status.is_(None), RunningJob.started_at.is_(None)]
        elif self.status:
            found.append(Job.status == self.status)
        if self.name:
            found.append(Job.name == self.name)
        if self.submitter:
            found.append(Job.user_id == select(User.id).where(User.username == self.submitter).scalar_subquery())
        if self.created_after:  # ids are in the order of submission, and hold its time
            found.append(Job.id >= first_id_of(_bounded((self.created_after - _EPOCH) // _MILLISECOND + 1)))
        if self.created_before:
            found.append(Job.id < first_id_of(_bounded(-((_EPOCH - self.created_before) // _MILLISECOND))))
        return found


def _bounded(milliseconds: int) -> int:
    return min(max(0, milliseconds), 2**48 - 1)


def list_jobs(
    session: Session, caller: Caller, wanted: Filter, limit: int, before: uuid.UUID | None, outputs: OutputStore
) -> tuple[list[dict[str, Any]], uuid.UUID | None]:
    """Up to `limit` records, newest first, older than `before`; and from where the next page goes on."""
    statement = _wide(func.left(Job.code, LIST_TAIL)).where(*wanted.conditions(caller))
    if before:
        statement = statement.where(Job.id < before)
    rows = session.execute(statement.order_by(Job.id.desc()).limit(limit + 1)).all()
    session.commit()  # the files are read without a transaction
    records = [record(Found(row), caller, outputs, LIST_TAIL) for row in rows[:limit]]
    return records, rows[limit - 1].id if len(rows) > limit else None


def matching(session: Session, caller: Caller, wanted: Filter, limit: int) -> list[uuid.UUID]:
    """Ids of up to `limit` jobs that have not ended."""
    return list(
        session.scalars(
            select(Job.id)
            .outerjoin(RunningJob, RunningJob.job_id == Job.id)
            .where(*wanted.conditions(caller), Job.status.is_(None), RunningJob.cancel_requested_at.is_(None))
            .order_by(Job.id)
            .limit(limit)
        )
    )


# -- what a pending job waits for ------------------------------------------------------------------------------------


def explain_pending(session: Session, found: Found, max_running: int, lost_after: float) -> dict[str, Any]:
    """`position` and `pending_reason` of a pending job. `max_running` is the default; `lost_after` in seconds."""
    deferred = session.execute(
        select(DeferredJob.run_at, DeferredJob.attempt).where(DeferredJob.job_id == found.job_id)
    ).first()
    if deferred:
        at = rfc3339(deferred.run_at)
        reason = f"starts at {at}" if not deferred.attempt else f"attempt {deferred.attempt + 1} starts at {at}"
        return {"position": None, "pending_reason": reason}
    ready = session.execute(select(ReadyJob.user_id, ReadyJob.ord).where(ReadyJob.job_id == found.job_id)).first()
    if ready is None:
        return {"position": None, "pending_reason": "is being started"}
    return {
        "position": _position(session, found.job_id, ready.user_id, ready.ord),
        "pending_reason": _why_waiting(session, ready.user_id, max_running, lost_after),
    }


def _why_waiting(session: Session, user_id: int, max_running: int, lost_after: float) -> str:
    fresh = Runner.beat_at > func.now() - func.make_interval(0, 0, 0, 0, 0, 0, lost_after)
    problems = session.scalars(select(Runner.sandbox).where(Runner.state == "live", fresh)).all()
    if not problems:
        return "no runner is up"
    if all(problems):
        return "no runner can make a sandbox; the operator's status page says why"
    running, own = session.execute(
        text(
            "SELECT (SELECT count(*) FROM running_job WHERE user_id = :id),"
            " (SELECT max_running FROM user_limits WHERE user_id = :id)"
        ),
        {"id": user_id},
    ).one()
    limit = max_running if own is None else own
    return f"you already run {running} jobs" if running >= limit else "waiting for a free slot"


def _position(session: Session, job_id: uuid.UUID, user_id: int, ord_: int) -> int | None:
    """How many jobs the fair share starts before this one, plus 1; None when it is far back.

    With r jobs of its owner ahead of it, each other user gets up to r in before it (users take turns).
    """
    earlier = and_(
        ReadyJob.user_id == user_id, tuple_(ReadyJob.ord, ReadyJob.job_id) < tuple_(bindparam("ord"), bindparam("job"))
    )
    ahead: int | None = session.scalar(
        select(func.count()).select_from(select(ReadyJob.job_id).where(earlier).limit(_FAR + 1).subquery()),
        {"ord": ord_, "job": job_id},
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
        {"user": user_id, "ahead": ahead, "far": _FAR * 10},
    )
    return 1 + ahead + int(others or 0)
