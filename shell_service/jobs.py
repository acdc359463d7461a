"""Jobs as their users find them: by id, or many at once. See `records` for what is told of them."""

from __future__ import annotations

import functools
import re
import uuid
from collections import namedtuple
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Row,
    Select,
    SQLColumnExpression,
    bindparam,
    case,
    cast,
    column,
    func,
    null,
    select,
    type_coerce,
)
from sqlalchemy import types as sql
from sqlalchemy.dialects.postgresql import ARRAY, psycopg2
from sqlalchemy.orm import Session

from baselayer.access import Caller
from baselayer.errors import NotFound
from baselayer.models import User
from baselayer.query import Query, Rows
from baselayer.visibility import Viewer, visible
from shell_service.models import Job, Runner, RunningJob

BRIEF = 1024  # in lists: characters of code, bytes of args, env and secrets as JSON, and of the end of each stream
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)  # what ids hold

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
    """A job that its caller may see: the row with what was read of it, and where it stands."""

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
        """The attempt that the record tells of: the one that runs, or the last that ran; 0 before the first."""
        running = self.row.running_since is not None and self.row.running_attempt
        attempt: int = running or self.row.attempt
        return attempt


class Wanted(NamedTuple):
    """A job that a caller wants; `size` is that of what was submitted, in characters, where it is known."""

    caller: Caller
    job_id: uuid.UUID
    size: int | None = None


# -- what of a job is read: a script and its input may be megabytes ---------------------------------------------------


def _standing(*more: SQLColumnExpression[Any]) -> Select[*tuple[Any, ...]]:
    """Whose a job is and where it stands, all that `Found` needs; and more."""
    return (
        select(
            *(Job.id, Job.user_id, Job.name, Job.attempt, Job.reason),
            Job.status.label("final_status"),
            RunningJob.started_at.label("running_since"),
            RunningJob.attempt.label("running_attempt"),
            *more,
        )
        .select_from(Job)
        .outerjoin(RunningJob, RunningJob.job_id == Job.id)
    )


def _wide(*more: SQLColumnExpression[Any]) -> Select[*tuple[Any, ...]]:
    """Everything that a record is made of, but what may be long; and more."""
    names = (
        "priority, upload, entrypoint, shell, timeout, limits, network, secrets_in_env, script, script_version,"
        " share_output, schedule_id, fired_for, pinned, notify, run_at,"
        " retries, retry_delay, on_lost, created_at,"
        " modified, return_code, signal, finished_at, stdout_bytes, stderr_bytes, output_truncated, artifacts,"
        " artifacts_bytes, artifacts_truncated, wall_seconds, cpu_seconds, peak_memory_bytes, written_bytes,"
        " cancelled_by"
    )
    columns = [getattr(Job, name.strip()) for name in names.split(",")]
    return (
        _standing(
            *columns,
            *more,
            User.username,
            func.coalesce(Job.started_at, RunningJob.started_at).label("started_at"),
            func.coalesce(Job.runner, Runner.name).label("runner"),
        )
        .join(User, User.id == Job.user_id)
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


def _wanted(statement: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    """What `statement` reads, of those jobs and for those callers that `find_many` names."""
    return (
        statement.add_columns(_WANTED.c.user_id.label("for_user"))
        .join(_WANTED, _WANTED.c.id == Job.id)
        .where(visible(Job, Viewer(_WANTED.c.user_id, _WANTED.c.is_admin)))
    )


STANDING = _wanted(_standing())
_LONG = (Job.args, Job.env, Job.secrets, Job.secret_env, Job.parameters)
RECORD = _wanted(_wide(Job.code, *_LONG))
REQUEST = _wanted(
    _standing(
        *(Job.priority, Job.code, Job.upload, Job.entrypoint, Job.shell, Job.args, Job.env, Job.stdin, Job.timeout),
        *(Job.retries, Job.retry_delay, Job.on_lost, Job.limits, Job.network, Job.secrets, Job.secrets_in_env),
        *(Job.secret_env, Job.script_id, Job.script, Job.script_version, Job.parameters, Job.share_output),
        Job.notify,
    )
)


def if_short(value: Any) -> ColumnElement[Any]:
    """A column of JSON; null where it is longer than `BRIEF` as text. What is so for sure is not even unpacked."""
    shown = case(
        (func.pg_column_size(value) > 2 * BRIEF, null()),
        (func.octet_length(cast(value, sql.Text)) > BRIEF, null()),
        else_=value,
    )
    return type_coerce(shown, value.type).label(value.key)


_BRIEF = _wide(func.left(Job.code, BRIEF).label("code"), *map(if_short, _LONG))


def find_many(session: Session, wanted: Sequence[Wanted], what: Select[*tuple[Any, ...]]) -> list[Found | None]:
    """For each of these, the job, or None where there is none that this caller may see.

    `what` is to be read of it: `STANDING`, `RECORD` or `REQUEST`.
    """
    return _found(wanted, session.execute(what, _parameters(wanted)))


def _parameters(wanted: Sequence[Wanted]) -> dict[str, list[Any]]:
    return {
        "ids": [item.job_id for item in wanted],
        "users": [item.caller.user_id for item in wanted],
        "admins": [item.caller.is_admin for item in wanted],
    }


def _found(wanted: Sequence[Wanted], rows: Iterable[Any]) -> list[Found | None]:
    found = {(row.for_user, row.id): Found(row) for row in rows}
    return [found.get((item.caller.user_id, item.job_id)) for item in wanted]


def look_up(wanted: Sequence[Wanted]) -> Query[list[Found | None]]:
    """As `find_many` of `RECORD`, as a query."""
    sql, row = _record_query()

    def read(rows: Rows) -> list[Found | None]:
        return _found(wanted, map(row._make, rows))

    return Query(sql, _parameters(wanted), read, kept=True)


@functools.cache
def _record_query() -> tuple[str, type[Any]]:
    """`RECORD` in the driver's form, and the type of its rows."""
    return str(RECORD.compile(dialect=psycopg2.dialect())), namedtuple("Row", RECORD.selected_columns.keys())


def find(session: Session, caller: Caller, text_id: str, what: Select[*tuple[Any, ...]] = STANDING) -> Found:
    """The job of this public id, for this caller; `what` as in `find_many`. Raises `NotFound`.

    Whatever is done with a job on somebody's behalf is done with what this returns.
    """
    name, job_id = parse_id(text_id)
    found = find_many(session, [Wanted(caller, job_id)], what)[0]
    if found is None or found.row.name != name:
        raise NotFound
    return found


def find_brief(session: Session, caller: Caller, ids: Sequence[uuid.UUID]) -> list[Found]:
    """These jobs, in this order, without what makes them long. Raises `NotFound` if `caller` may not see them all."""
    rows = session.execute(_BRIEF.where(visible(Job, caller.viewer), Job.id.in_(ids)))
    found = {row.id: Found(row) for row in rows}
    if not found.keys() >= set(ids):
        raise NotFound
    return [found[job_id] for job_id in ids]


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


def page(
    session: Session, caller: Caller, wanted: Filter, limit: int, before: uuid.UUID | None
) -> tuple[list[Found], uuid.UUID | None]:
    """Up to `limit` jobs, newest first, older than `before`; and from where the next page goes on.

    Without what makes them long, so that a page of a thousand is no burden.
    """
    statement = _BRIEF.where(*wanted.conditions(caller))
    if before:
        statement = statement.where(Job.id < before)
    rows = session.execute(statement.order_by(Job.id.desc()).limit(limit + 1)).all()
    return [Found(row) for row in rows[:limit]], rows[limit - 1].id if len(rows) > limit else None


def newest(session: Session) -> uuid.UUID | None:
    """The highest id that any job has by now: none that is there has a higher one, and soon all new ones have."""
    return session.scalar(select(Job.id).order_by(Job.id.desc()).limit(1))


def matching(session: Session, caller: Caller, wanted: Filter, limit: int, last: uuid.UUID) -> list[uuid.UUID]:
    """Ids, none of them above `last`, of up to `limit` jobs that have not ended."""
    return list(
        session.scalars(
            select(Job.id)
            .outerjoin(RunningJob, RunningJob.job_id == Job.id)
            .where(*wanted.conditions(caller), Job.id <= last)
            .where(Job.status.is_(None), RunningJob.cancel_requested_at.is_(None))
            .order_by(Job.id)
            .limit(limit)
        )
    )
