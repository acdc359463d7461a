"""Runs: what a job of a script's version asks for, and how the jobs of a script went."""

from __future__ import annotations

import functools
import uuid
from collections import namedtuple
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import FromClause, Row, Select, bindparam, column, func, select, union_all
from sqlalchemy import types as sql
from sqlalchemy.dialects.postgresql import ARRAY, psycopg2
from sqlalchemy.orm import Session

from baselayer.access import Caller
from baselayer.errors import ApiError, FieldErrors, InvalidRequest, NotFound
from baselayer.fields import rfc3339
from baselayer.models import User
from baselayer.query import Query, Rows
from baselayer.visibility import Viewer
from shell_service import parameters, schemas, scripts, submissions
from shell_service.jobs import public_id
from shell_service.models import FINAL_STATUSES, Content, Job, RunningJob, Script, ScriptVersion
from shell_service.scripts import Found, Level, Name
from shell_service.settings import Jobs

_COUNTED = 100  # ended jobs that figures are of


# -- what is run -------------------------------------------------------------------------------------------------------


class Wanted(NamedTuple):
    """A script that a caller wants to run: this version of it, by default its newest."""

    caller: Caller
    name: Name
    version: int | None


_WANTED: FromClause = (
    func.unnest(
        bindparam("users", type_=ARRAY(sql.Integer)),
        bindparam("admins", type_=ARRAY(sql.Boolean)),
        bindparam("owners", type_=ARRAY(sql.Text)),
        bindparam("names", type_=ARRAY(sql.Text)),
        bindparam("versions", type_=ARRAY(sql.Integer)),
    )
    .table_valued(
        *(column("user_id", sql.Integer), column("is_admin", sql.Boolean)),
        *(column("owner", sql.Text), column("name", sql.Text), column("version", sql.Integer)),
        with_ordinality="place",
    )
    .render_derived(name="wanted")
)


@functools.cache
def _statement() -> tuple[str, type[Any]]:
    """The statement of `look_up` in the driver's form, and the type of its rows."""
    number = func.coalesce(_WANTED.c.version, Script.version)
    statement = (
        scripts.with_level(
            Viewer(_WANTED.c.user_id, _WANTED.c.is_admin), _WANTED.c.place, ScriptVersion.number, *scripts.SAID
        )
        .join(_WANTED, (_WANTED.c.owner == User.username) & (_WANTED.c.name == Script.name))
        .outerjoin(ScriptVersion, (ScriptVersion.script_id == Script.id) & (ScriptVersion.number == number))
        .outerjoin(Content, Content.digest == ScriptVersion.digest)
    )
    return str(statement.compile(dialect=psycopg2.dialect())), namedtuple("Row", statement.selected_columns.keys())


@dataclass(frozen=True)
class Said:
    """What a version of a script says to run."""

    script_id: int
    script: Name
    version: int
    code: str
    shell: str
    parameters: list[dict[str, Any]]
    defaults: dict[str, Any]
    #: Whom the script's owner lets be told, see `submissions.targets`.
    notify: list[dict[str, Any]]
    #: The digest of files, in place of code, and which of them is run.
    upload: str | None
    entrypoint: str | None

    @classmethod
    def of(cls, found: Found, row: Any) -> Said:
        """Of a script, and a row of a version with its content."""
        what = row.number, row.code, row.shell, row.parameters, row.defaults
        notify = submissions.targets(found.row.user_id, found.row.notify)
        return cls(found.id, found.name, *what, notify, row.upload and row.upload.hex(), row.entrypoint)


def look_up(wanted: Sequence[Wanted]) -> Query[list[Found | ApiError]]:
    """For each of these, the script with what that version of it says.

    Or `NotFound`, `NotAllowed` or `Conflict` where its caller may not run that.
    """
    statement, row = _statement()
    asked = {
        "users": [item.caller.user_id for item in wanted],
        "admins": [item.caller.is_admin for item in wanted],
        "owners": [item.name.owner for item in wanted],
        "names": [item.name.name for item in wanted],
        "versions": [item.version for item in wanted],
    }

    def read(rows: Rows) -> list[Found | ApiError]:
        found = {made.place: Found(made) for made in map(row._make, rows)}
        return [_may_run(item, found.get(place)) for place, item in enumerate(wanted, 1)]

    return Query(statement, asked, read, kept=True)


def _may_run(wanted: Wanted, found: Found | None) -> Found | ApiError:
    if found is None or found.level == Level.NONE:
        return NotFound()
    try:
        found.require(Level.RUN)
    except ApiError as error:
        return error
    if found.row.number is None:
        newest = found.row.version
        return NotFound(f"The script {wanted.name} has no version {wanted.version}; its newest is {newest}.")
    return found


@dataclass(frozen=True)
class Run:
    """What a job of a script asks for: as `submissions.new_job` takes it."""

    request: dict[str, Any]
    origin: dict[str, Any]


def make(said: Said, given: Mapping[str, Any], overrides: Mapping[str, Any], rules: Jobs, share: bool) -> Run:
    """The job that a version of a script makes of values for its parameters, and of what is to be another way.

    Raises `InvalidRequest` that tells of all that is wrong with them.
    """
    answers, wrong = parameters.answers(said.parameters, given)
    errors: FieldErrors = {"parameters": wrong} if wrong else {}
    request = {**schemas.plain_request(), **said.defaults, **overrides}
    for name in ("env", "limits"):
        request[name] = {**said.defaults.get(name, {}), **overrides.get(name, {})}
    for name, values in (("env", answers.env), ("secret_env", answers.secret_env)):
        if both := sorted(values.keys() & (overrides.get("env", {}).keys() | overrides.get("secret_env", {}).keys())):
            errors["overrides"] = {"env": [f"{both[0]} is the variable of a parameter."]}
        request[name] = {**request[name], **values}
    request["args"] = [*answers.args, *request["args"]]
    if not errors and (problems := schemas.input_problems(request, rules) | schemas.secrets_problems(request)):
        errors["overrides"] = problems
    if errors:
        raise InvalidRequest.of(errors)
    request |= {"name": said.script.name, "shell": said.shell}
    request |= {"code": said.code, "upload": said.upload, "entrypoint": said.entrypoint}
    origin = {
        "script_id": said.script_id,
        "script": str(said.script),
        "script_version": said.version,
        "parameters": answers.values,
        "share_output": share,
        "notify": said.notify,
    }
    return Run(request, origin)


# -- how it went -------------------------------------------------------------------------------------------------------

_COLUMNS = (
    *(Job.id, Job.name, Job.script_version, Job.status, Job.reason, Job.created_at, Job.finished_at),
    *(Job.return_code, Job.wall_seconds, Job.share_output, User.username),
)


def _select(found: Found, caller: Caller) -> Select[*tuple[Any, ...]]:
    """Jobs of a script that the caller may know of: all, where the script is his, else his own."""
    statement = (
        select(
            *_COLUMNS,
            RunningJob.started_at.label("running_since"),
            func.coalesce(Job.started_at, RunningJob.started_at).label("started_at"),
        )
        .select_from(Job)
        .join(User, User.id == Job.user_id)
        .outerjoin(RunningJob, RunningJob.job_id == Job.id)
        .where(Job.script_id == found.id)
    )
    if found.level < Level.OWN:
        statement = statement.where(Job.user_id == caller.user_id, Job.name == found.row.name)  # there is an index
    return statement


def page(
    session: Session, found: Found, caller: Caller, status: str | None, limit: int, before: uuid.UUID | None
) -> tuple[list[dict[str, Any]], uuid.UUID | None]:
    """Up to `limit` jobs of a script, newest first, older than `before`; and from where the next page goes on."""
    statement = _select(found, caller)
    if status == "RUNNING":
        statement = statement.where(Job.status.is_(None), RunningJob.started_at.is_not(None))
    elif status == "PENDING":
        statement = statement.where(Job.status.is_(None), RunningJob.started_at.is_(None))
    elif status:
        statement = statement.where(Job.status == status)
    if before:
        statement = statement.where(Job.id < before)
    rows = session.execute(statement.order_by(Job.id.desc()).limit(limit + 1)).all()
    return [_record(row) for row in rows[:limit]], rows[limit - 1].id if len(rows) > limit else None


def _record(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": public_id(row.name, row.id),
        "submitter": row.username,
        "version": row.script_version,
        "status": row.status or ("RUNNING" if row.running_since else "PENDING"),
        # Of a job that never began it may name what only its owner knows, such as a secret.
        "reason": row.reason if row.started_at else None,
        "created_at": rfc3339(row.created_at),
        "started_at": rfc3339(row.started_at),
        "finished_at": rfc3339(row.finished_at),
        "return_code": row.return_code,
        "wall_seconds": row.wall_seconds,
        "share_output": row.share_output,
    }


def status(session: Session, found: Found, caller: Caller) -> dict[str, Any]:
    """How a script does (see `script_schemas.ScriptStatus`)."""
    newest = _select(found, caller).order_by(Job.id.desc()).limit(1)
    ended = _ended(session, found, caller)
    best = [row for row in ended if row.status == "COMPLETED"]
    failed = [row for row in ended if row.status not in ("COMPLETED", "CANCELLED")]
    counted = sorted(ended, key=lambda row: row.id, reverse=True)[:_COUNTED]
    times = sorted(row.wall_seconds for row in counted if row.status == "COMPLETED" and row.wall_seconds is not None)
    latest = session.execute(newest).first()
    active = _select(found, caller).where(Job.status.is_(None)).subquery()
    waiting, running = session.execute(
        select(func.count().filter(active.c.running_since.is_(None)), func.count(active.c.running_since)).select_from(
            active
        )
    ).one()
    return {
        "latest": latest and _record(latest),
        "last_success": _newest(best),
        "last_failure": _newest(failed),
        "waiting": waiting,
        "running": running,
        "counted": len(counted),
        "success_rate": sum(row.status == "COMPLETED" for row in counted) / len(counted) if counted else None,
        "durations": _durations(times),
    }


def _durations(times: Sequence[float]) -> dict[str, float] | None:
    """Of ascending times."""
    if not times:
        return None
    return {"shortest": times[0], "median": times[(len(times) - 1) // 2], "longest": times[-1]}


def _ended(session: Session, found: Found, caller: Caller) -> Sequence[Row[Any]]:
    """The newest of each final status: an index leads to them, past those that have not ended."""
    parts = [
        _select(found, caller).where(Job.status == status).order_by(Job.id.desc()).limit(_COUNTED).subquery()
        for status in FINAL_STATUSES
    ]
    return session.execute(union_all(*(select(part) for part in parts))).all()


def _newest(rows: Sequence[Row[Any]]) -> dict[str, Any] | None:
    return _record(max(rows, key=lambda row: row.id)) if rows else None
