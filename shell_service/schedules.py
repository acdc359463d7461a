"""Schedules: rules that make jobs from a script at times.

A schedule stands at one instant, `instant`, for which it has not fired yet; `due_at` is when it is looked at next: null
where it is paused, or fires no more. Whoever fires it holds its row, and moves it on in the transaction that stores the
job. So there is one job for each instant, however many schedulers there are and whatever becomes of them; and clocks
that are put back fire nothing twice.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import Row, Select, and_, case, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from baselayer.access import Caller
from baselayer.errors import ApiError, Conflict, InvalidRequest, LimitReached, NotAllowed, NotFound
from baselayer.fields import rfc3339
from baselayer.models import User
from baselayer.visibility import Viewer, visible
from shell_service import runs, scripts, submissions
from shell_service.audit import Entry
from shell_service.jobs import if_short, public_id
from shell_service.models import Content, Schedule, Script, ScriptVersion
from shell_service.runs import Said
from shell_service.scripts import Found, Level, Name
from shell_service.settings import Jobs
from shell_service.settings import Schedules as Bounds
from shell_service.submissions import Archived, Inactive, Limits, NewJob, Overlaps, Stored, Submission
from shell_service.timetable import Timetable, Unusable

logger = logging.getLogger(__name__)

_AT_ONCE = 500  # schedules that one transaction fires
_LARGE = 4_000_000  # bytes of scripts after which it takes no more
_RETRY = timedelta(seconds=10)  # after which one is fired again whose owner had too many jobs
_SECONDS = 1.0  # after which a transaction prepares no more: the rows of those it has are locked meanwhile
_CANCELLING = ("cancel_previous", "queue_latest")
_ALONE = ("skip", *_CANCELLING)  # of a script only one such job is stored at once
_SCOPES = ("jobs:network", "secrets:use")  # that a token may lack, and its schedules with it
MAX_INPUT = 64 * 1024  # bytes of parameters and overrides together, as JSON
_TABLE = ("cron", "every", "at", "timezone", "start", "end", "jitter")


def timetable(row: Any) -> Timetable:
    """When a schedule fires."""
    return Timetable(
        cron=row.cron,
        every=row.every,
        at=row.at,
        timezone=row.timezone,
        start=row.start,
        end=row.end,
        anchor=row.created_at,
        jitter=row.jitter,
        salt=row.id,
    )


def record(row: Row[Any]) -> dict[str, Any]:
    """What the API tells of a schedule."""
    names = ("id", "script", "version", "parameters", "overrides", "overlap", "cron", "every", "timezone", "jitter")
    times = ("at", "start", "end", "created_at", "modified")
    return {
        **{name: getattr(row, name) for name in (*names, "catch_up", "catch_up_limit", "notify", "enabled", "problem")},
        **{name: rfc3339(getattr(row, name)) for name in times},
        "owner": row.username,
        "next_fire": rfc3339(row.instant and timetable(row).late(row.instant)) if row.enabled else None,
        "last_fire": rfc3339(row.last_instant),
        "last_job": row.last_job_id and public_id(row.script.partition("/")[2], row.last_job_id),
    }


def _select(brief: bool = False) -> Select[*tuple[Any, ...]]:
    """Schedules; with `brief` without what may be long, as there may be a thousand of them."""
    columns = [
        if_short(column) if brief and column.name in ("parameters", "overrides") else column
        for column in Schedule.__table__.columns
    ]
    return select(*columns, User.username).select_from(Schedule).join(User, User.id == Schedule.user_id)


def find(session: Session, caller: Caller, number: int, lock: bool = False) -> Row[Any]:
    """A schedule of the caller's; administrators find all. Raises `NotFound`."""
    statement = _select().where(visible(Schedule, caller.viewer), Schedule.id == number)
    row = session.execute(statement.with_for_update(of=Schedule) if lock else statement).first()
    if row is None:
        raise NotFound
    return row


def page(session: Session, caller: Caller, limit: int, before: int | None, script: str | None) -> list[Row[Any]]:
    """Up to `limit` schedules that the caller may see, newest first, with numbers below `before`."""
    statement = _select(brief=True).where(visible(Schedule, caller.viewer))
    if not caller.is_admin:
        statement = statement.where(Schedule.user_id == caller.user_id)  # said plainly, so that the index serves
    if script is not None:
        statement = statement.where(Schedule.script == script)
    if before is not None:
        statement = statement.where(Schedule.id < before)
    return list(session.execute(statement.order_by(Schedule.id.desc()).limit(limit)))


# -- making and changing -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Means:
    """What schedules are checked against."""

    bounds: Bounds
    jobs: Jobs


def create(session: Session, caller: Caller, request: Mapping[str, Any], means: Means) -> Row[Any]:
    """Make a schedule of the caller's (see `schedule_schemas.ScheduleRequest`).

    Raises `InvalidRequest` for one that cannot work, and `Conflict` where he has too many.
    """
    submissions.lock_user(session, caller.user_id)  # whoever comes at the same time counts this one
    count = session.scalar(select(func.count()).where(Schedule.user_id == caller.user_id)) or 0
    if count >= means.bounds.max_schedules:
        raise Conflict(f"You may have {means.bounds.max_schedules} schedules, and you have them.")
    name = _name_of(caller, request["script"])
    found = _script_of(session, caller, name)
    now = clock(session)
    values = {key: value for key, value in request.items() if key not in ("script", "enabled")}
    _check(session, caller, found, values, means, now)
    number = session.scalar(
        insert(Schedule)
        .values(
            **values,
            user_id=caller.user_id,
            script_id=found.id,
            script=str(name),
            enabled=request["enabled"],
            scopes=_scopes(caller),
            created_at=now,
            modified=now,
        )
        .returning(Schedule.id)
    )
    assert number is not None
    _stand(session, number, now)
    return find(session, caller, number)


def clock(session: Session) -> datetime:
    """The time of the database: of all hosts' clocks the one that schedules go by."""
    now: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
    return now


def _scopes(caller: Caller) -> list[str]:
    """What the token of whoever makes or changes a schedule is good for, as far as that matters to its jobs."""
    return [scope for scope in _SCOPES if scope in caller.scopes]


def _name_of(caller: Caller, text: str) -> Name:
    owner, _, name = text.rpartition("/")
    return Name(owner or caller.username, name)


def _script_of(session: Session, caller: Caller, name: Name) -> Found:
    try:
        return scripts.find(session, caller, name, Level.RUN)
    except NotFound:
        raise InvalidRequest.of({"script": [f"There is no script {name}, or it is not shared with you."]}) from None
    except (NotAllowed, Conflict) as error:
        raise InvalidRequest.of({"script": [error.message]}) from None


def _check(
    session: Session, caller: Caller, found: Found, values: Mapping[str, Any], means: Means, now: datetime
) -> None:
    """Raise `InvalidRequest` where a schedule would never fire, or its jobs could not be made."""
    said = _said(session, found, values["version"])
    job = _job(caller.user_id, said, values["parameters"], values["overrides"], means.jobs)
    submissions.require_scopes(Submission(caller.user_id, [job]), caller.scopes)
    table = Timetable(**{name: values[name] for name in _TABLE}, anchor=now)
    kind = next((name for name in ("cron", "every", "at") if values[name] is not None), None)
    if kind is None:
        raise InvalidRequest.of({"cron": ["Give one of cron, every and at."]})
    if values["overlap"] in _CANCELLING and found.level < Level.EDIT:
        raise InvalidRequest.of({"overlap": ["Only who may change the script may let its jobs be cancelled."]})
    if len(orjson.dumps([values["parameters"], values["overrides"]])) > MAX_INPUT:
        raise InvalidRequest.of({"overrides": [f"With the parameters at most {MAX_INPUT} bytes of JSON."]})
    try:
        table.check(means.bounds.min_interval, now)
    except Unusable as error:
        raise InvalidRequest.of({kind: [str(error)]}) from None


def _said(session: Session, found: Found, version: int | None) -> Said:
    try:
        return Said.of(found, scripts.said(session, found, version))
    except NotFound as error:
        raise InvalidRequest.of({"version": [error.message]}) from None


def _job(
    user_id: int,
    said: Said,
    parameters: Mapping[str, Any],
    overrides: Mapping[str, Any],
    rules: Jobs,
    schedule: int | None = None,
    instant: datetime | None = None,
) -> NewJob:
    run = runs.make(said, parameters, overrides, rules, share=False)
    return submissions.new_job(user_id, run.request, **run.origin, schedule_id=schedule, fired_for=instant)


def _stand(session: Session, number: int, now: datetime) -> None:
    """Let a schedule stand at its first instant after this time, and after the last that it fired for."""
    row = session.execute(select(*Schedule.__table__.columns).where(Schedule.id == number)).one()
    table = timetable(row)
    instant = next(_ahead(row, now), None)
    due = instant and table.late(instant) if row.enabled else None
    values = {"instant": instant, "due_at": due, "catching_up": False}
    session.execute(update(Schedule).where(Schedule.id == number).values(values))


def _ahead(row: Row[Any], now: datetime) -> Iterator[datetime]:
    """The instants that a schedule has still to fire for, late ones included; none from before it was made."""
    table = timetable(row)
    begin = max(now - timedelta(seconds=table.jitter), row.created_at, row.last_instant or row.created_at)
    return (instant for instant in table.after(begin) if table.late(instant) > now)


def change(session: Session, caller: Caller, number: int, request: Mapping[str, Any], means: Means) -> Row[Any]:
    """Change what is named (see `schedule_schemas.SchedulePatch`).

    Raises `NotFound`, `NotAllowed`, `InvalidRequest`.
    """
    row = _own(session, caller, number)
    values = {name: getattr(row, name) for name in (*_TABLE, "version", "parameters", "overrides", "overlap")}
    if any(request.get(name) is not None for name in ("cron", "every", "at")):
        values |= dict.fromkeys(("cron", "every", "at"))
    values |= request
    found = _script_of(session, caller, _name_of(caller, row.script))
    now = clock(session)
    _check(session, caller, found, values, means, now)
    changes = {**request, **{name: values[name] for name in ("cron", "every", "at")}}
    session.execute(
        update(Schedule)
        .where(Schedule.id == number)
        .values(**changes, script_id=found.id, scopes=_scopes(caller), modified=now, problem=None)
    )
    _stand(session, number, now)
    return find(session, caller, number)


def _own(session: Session, caller: Caller, number: int) -> Row[Any]:
    """A schedule of the caller's own, locked. Raises `NotFound`, `NotAllowed`."""
    row = find(session, caller, number, lock=True)
    if row.user_id != caller.user_id:
        raise NotAllowed("Only its owner can change a schedule or let it run, as its jobs are his; you can pause it.")
    return row


def pause(session: Session, caller: Caller, number: int) -> Row[Any]:
    """Let a schedule fire no more, for now. Raises `NotFound`."""
    find(session, caller, number, lock=True)
    values = {"enabled": False, "due_at": None, "problem": None, "modified": func.clock_timestamp()}
    session.execute(update(Schedule).where(Schedule.id == number).values(values))
    return find(session, caller, number)


def resume(session: Session, caller: Caller, number: int, means: Means) -> Row[Any]:
    """Let a schedule fire again, from now on. Raises as `change` does."""
    _own(session, caller, number)
    return change(session, caller, number, {"enabled": True}, means)


def remove(session: Session, caller: Caller, number: int) -> Row[Any]:
    """Delete a schedule; returns it as it was. Its jobs stay. Raises `NotFound`."""
    row = find(session, caller, number, lock=True)
    session.execute(text("DELETE FROM schedule WHERE id = :id"), {"id": number})
    return row


def coming(row: Row[Any], now: datetime, count: int) -> list[datetime]:
    """When a schedule fires next, up to `count` times, were it not paused."""
    table = timetable(row)
    return [table.late(item) for item in itertools.islice(_ahead(row, now), count)]


def run_now(session: Session, caller: Caller, number: int, rules: Jobs) -> tuple[Found, NewJob, str | None]:
    """The job of a schedule that fires at once, beside its instants; its script, and what it does about others of that.

    Raises as `change` does.
    """
    row = find(session, caller, number)
    if row.user_id != caller.user_id:
        raise NotAllowed("Only its owner can let a schedule run, as its jobs are his.")
    found = _script_of(session, caller, _name_of(caller, row.script))
    said = _said(session, found, row.version)
    said = dataclasses.replace(said, notify=[*said.notify, *submissions.targets(row.user_id, row.notify)])
    job = _job(caller.user_id, said, row.parameters, row.overrides, rules, number)
    return found, job, _overlap(row.overlap, found.level)


def _overlap(wanted: str | None, level: Level) -> str | None:
    """What a schedule does about other jobs of its script: cancel them only as long as its owner may change that."""
    return None if wanted in _CANCELLING and level < Level.EDIT else wanted


# -- firing ------------------------------------------------------------------------------------------------------------


@dataclass
class _Fire:
    """A schedule that is due, and what comes of it: how it stands afterwards."""

    row: Row[Any]
    instant: datetime | None  # for which it fires now; None: all that it stood at was missed
    values: dict[str, Any]
    job: NewJob | None = None

    def pause(self, problem: str) -> None:
        self.values |= {"enabled": False, "due_at": None, "problem": problem}

    @property
    def submission(self) -> Submission:
        row, job = self.row, self.job
        assert job is not None
        detail = {"version": job.script_version, "job": job.public_id, "schedule": row.id}
        entry = Entry("script.run", row.script, row.user_id, row.username, detail=detail)
        return Submission(row.user_id, [job], audit=entry, overlap=_overlap(row.overlap, Level(row.level)))


def any_due(session: Session) -> bool:
    """Whether any schedule is due."""
    due = select(Schedule.id).where(Schedule.due_at <= func.clock_timestamp())
    return bool(session.scalar(select(due.exists())))


def fire(session: Session, limits: Limits, rules: Jobs, grace: float) -> int:
    """Fire schedules that are due, up to some hundreds; returns how many it fired, so that another call does the rest.

    What is older than `grace` seconds was missed; the schedule's `catch_up` says what becomes of that.
    """
    now = clock(session)
    ids = _due(session, now)
    fires = _some(
        _locked(session, ids, now), lambda row: _prepared_or_paused(row, now, timedelta(seconds=grace), rules)
    )
    wanted = [item for item in fires if item.job is not None]
    results = submissions.submit([item.submission for item in wanted], limits).on(session) if wanted else []
    for item, result in zip(wanted, results, strict=True):
        _note(item, result, now)
    _move_on(session, fires)
    return len(fires)


def _some(rows: Sequence[Row[Any]], prepare: Callable[[Row[Any]], _Fire]) -> list[_Fire]:
    """As many as can be prepared in some time: looking for what was missed long ago takes a while for each."""
    end, fires = time.monotonic() + _SECONDS, []
    for row in rows:
        fires.append(prepare(row))
        if time.monotonic() > end:
            break
    return fires


def _due(session: Session, now: datetime) -> list[int]:
    """Schedules that are due, the longest first: as many as fit into one transaction."""
    version = and_(
        ScriptVersion.script_id == Script.id,
        ScriptVersion.number == func.coalesce(Schedule.version, Script.version),
    )
    overlap = func.coalesce(Schedule.overlap, Script.overlap)
    # Of one script whose jobs are skipped or cancelled for one another, one in a transaction.
    alone = case((overlap.in_(_ALONE), Schedule.script_id), else_=-Schedule.id)
    due = (
        select(
            *(Schedule.id, Schedule.due_at),
            func.row_number().over(partition_by=alone, order_by=(Schedule.due_at, Schedule.id)).label("turn"),
            (
                func.coalesce(Content.size, 0)
                + func.pg_column_size(Schedule.overrides)
                + func.pg_column_size(Schedule.parameters)
            ).label("size"),
        )
        .select_from(Schedule)
        .outerjoin(Script, Script.id == Schedule.script_id)
        .outerjoin(ScriptVersion, version)
        .outerjoin(Content, Content.digest == ScriptVersion.digest)
        .where(Schedule.due_at <= now)
        .subquery()
    )
    rows = session.execute(
        select(due.c.id, due.c.size).where(due.c.turn == 1).order_by(due.c.due_at, due.c.id).limit(_AT_ONCE)
    )
    ids: list[int] = []
    size = 0
    for row in rows:
        size += row.size
        if ids and size > _LARGE:
            break
        ids.append(row.id)
    return ids


def _locked(session: Session, ids: Sequence[int], now: datetime) -> Sequence[Row[Any]]:
    """These schedules, with all that firing them takes; those left out that somebody else fires just now."""
    if not ids:
        return []
    viewer = Viewer(Schedule.__table__.c.user_id, User.role == "admin")
    columns = [
        column.label(f"script_{column.name}")
        for column in (Script.name, Script.archived_at, Script.user_id, Script.notify)
    ]
    version = and_(
        ScriptVersion.script_id == Script.id,
        ScriptVersion.number == func.coalesce(Schedule.version, Script.version),
    )
    statement = (
        select(
            *Schedule.__table__.columns,
            *(User.username, User.active, scripts.level_of(viewer).label("level"), *columns),
            *(ScriptVersion.number, Content.code, Content.upload, Content.entrypoint, Content.shell, Content.defaults),
            Content.parameters.label("declared"),
        )
        .select_from(Schedule)
        .join(User, User.id == Schedule.user_id)
        .outerjoin(Script, Script.id == Schedule.script_id)
        .outerjoin(ScriptVersion, version)
        .outerjoin(Content, Content.digest == ScriptVersion.digest)
        .where(Schedule.id.in_(ids), Schedule.due_at <= now)
        .order_by(Schedule.id)
        .with_for_update(of=Schedule, skip_locked=True)
    )
    return list(session.execute(statement))


def _prepared(row: Row[Any], now: datetime, grace: timedelta, rules: Jobs) -> _Fire:
    """What a due schedule does: the job that it makes, and the instant that it stands at afterwards."""
    table, instant = timetable(row), row.instant
    missed = now - table.late(instant) > grace
    if missed and not row.catching_up:
        instant = _caught_up(row, table, now, grace)
    if instant is None or table.late(instant) > now:
        item = _Fire(row, None, _standing(row, table, instant))
        item.values["problem"] = f"Missed, as nobody fired it then: {rfc3339(row.instant)}, and what came after."
    else:
        item = _Fire(row, instant, _standing(row, table, table.next(instant)))
        # What is left out has been left out: those from here on are fired one after the other.
        item.values["catching_up"] = missed and row.catch_up == "all"
    if problem := _gone(row):
        item.pause(problem)
    elif item.instant is not None:
        name = Name(*row.script.split("/"))
        what = row.number, row.code, row.shell, row.declared, row.defaults
        told = submissions.targets(row.script_user_id, row.script_notify)
        notify = [*told, *submissions.targets(row.user_id, row.notify)]
        said = Said(row.script_id, name, *what, notify, row.upload and row.upload.hex(), row.entrypoint)
        item.values["last_instant"] = item.instant
        try:
            job = _job(row.user_id, said, row.parameters, row.overrides, rules, row.id, item.instant)
            submissions.require_scopes(Submission(row.user_id, [job]), row.scopes)
            item.job = job
        except (InvalidRequest, NotAllowed) as error:
            item.values["problem"] = _refused(item.instant, error)
    return item


def _prepared_or_paused(row: Row[Any], now: datetime, grace: timedelta, rules: Jobs) -> _Fire:
    """As `_prepared`; one that fails, as when its time zone is no more, is paused, and keeps no other from firing."""
    try:
        return _prepared(row, now, grace, rules)
    except Exception as error:
        logger.exception("schedule %d cannot be fired: paused", row.id)
        kept = ("id", "enabled", "instant", "due_at", "last_instant", "last_job_id", "catching_up")
        item = _Fire(row, None, {name: getattr(row, name) for name in kept})
        item.pause(str(error) if isinstance(error, Unusable) else "It cannot be fired; the service's log says why.")
        return item


def _standing(row: Row[Any], table: Timetable, instant: datetime | None) -> dict[str, Any]:
    """How a schedule stands when this is the instant that it has not fired for yet."""
    kept = {name: getattr(row, name) for name in ("id", "enabled", "last_instant", "last_job_id")}
    due = instant and table.late(instant)
    return {**kept, "instant": instant, "due_at": due, "problem": None, "catching_up": False}


def _caught_up(row: Row[Any], table: Timetable, now: datetime, grace: timedelta) -> datetime | None:
    """Where instants were missed, the first that is not left out; None where there is none any more."""
    if row.catch_up != "none":
        most = 1 if row.catch_up == "last" else row.catch_up_limit
        return next(iter(table.latest(row.instant, now, most)), None)
    oldest = now - grace
    begin = max(row.instant, oldest - timedelta(seconds=table.jitter)) - timedelta(microseconds=1)
    return next((instant for instant in table.after(begin) if table.late(instant) >= oldest), None)


def _gone(row: Row[Any]) -> str | None:
    """Why a schedule cannot fire any more, if so."""
    if not row.active:
        return "Its owner is not active any more."
    if row.script_name is None:
        return f"The script {row.script} is gone."
    if row.script_archived_at is not None:
        return f"The script {row.script} is archived."
    if row.level < Level.RUN:
        return f"The script {row.script} is not shared with its owner any more."
    if row.number is None:
        return f"The script {row.script} has no version {row.version}."
    return None


def _refused(instant: datetime, error: ApiError) -> str:
    return f"At {rfc3339(instant)} no job was made: {error.message}"


def _note(item: _Fire, result: Stored | Exception, now: datetime) -> None:
    """Put down what became of the job that a schedule made."""
    assert item.job is not None and item.instant is not None
    if isinstance(result, Stored):
        item.values["last_job_id"] = item.job.id
    elif isinstance(result, LimitReached):  # there may be room again before it counts as missed
        row = item.row
        item.values |= {"instant": item.instant, "due_at": now + _RETRY, "last_instant": row.last_instant}
        item.values["catching_up"] = row.catching_up
        item.values["problem"] = _refused(item.instant, result)
    elif isinstance(result, Overlaps):
        item.values["problem"] = f"At {rfc3339(item.instant)} it was skipped: {result.message}"
    elif isinstance(result, Archived | Inactive):  # just now
        item.pause(result.message)
    elif isinstance(result, ApiError):
        item.values["problem"] = _refused(item.instant, result)
    else:
        raise result


def _move_on(session: Session, fires: Sequence[_Fire]) -> None:
    if fires:
        session.execute(
            text(
                """
                UPDATE schedule s SET instant = r.instant, due_at = r.due_at, enabled = r.enabled, problem = r.problem,
                  last_instant = r.last_instant, last_job_id = r.last_job_id, catching_up = r.catching_up
                FROM json_to_recordset(CAST(:rows AS json)) AS r(id int, instant timestamptz, due_at timestamptz,
                  enabled boolean, problem text, last_instant timestamptz, last_job_id uuid, catching_up boolean)
                WHERE s.id = r.id
                """
            ),
            {"rows": orjson.dumps([item.values for item in fires]).decode()},
        )
