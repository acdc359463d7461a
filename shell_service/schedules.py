"""Schedules: rules that make jobs from a script at times.

A schedule stands at one instant, `instant`, for which it has not fired yet; `due_at` is when it is looked at next: null
where it is paused, or fires no more. Whoever fires it holds its row, and moves it on in the transaction that stores the
job. So there is one job for each instant, however many schedulers there are and whatever becomes of them; and clocks
that are put back fire nothing twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import Row, Select, and_, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from baselayer.access import Caller
from baselayer.errors import ApiError, Conflict, InvalidRequest, LimitReached, NotAllowed, NotFound
from baselayer.fields import rfc3339
from baselayer.models import User
from baselayer.visibility import Viewer, visible
from shell_service import runs, scripts, submissions
from shell_service.audit import Entry
from shell_service.jobs import public_id
from shell_service.models import Content, Schedule, Script, ScriptVersion
from shell_service.runs import Said
from shell_service.scripts import Found, Level, Name
from shell_service.settings import Jobs
from shell_service.settings import Schedules as Bounds
from shell_service.submissions import Limits, NewJob, Overlaps, Stored, Submission
from shell_service.timetable import Timetable, Unusable

_AT_ONCE = 500  # schedules that one transaction fires
_LARGE = 4_000_000  # bytes of scripts after which it takes no more
_RETRY = timedelta(seconds=10)  # after which one is fired again whose owner had too many jobs
_ALONE = ("skip", "cancel_previous", "queue_latest")  # of a script only one such job is stored at once
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


def _select() -> Select[*tuple[Any, ...]]:
    return select(*Schedule.__table__.columns, User.username).join(User, User.id == Schedule.user_id)


def find(session: Session, caller: Caller, number: int, lock: bool = False) -> Row[Any]:
    """A schedule of the caller's; administrators find all. Raises `NotFound`."""
    statement = _select().where(visible(Schedule, caller.viewer), Schedule.id == number)
    row = session.execute(statement.with_for_update(of=Schedule) if lock else statement).first()
    if row is None:
        raise NotFound
    return row


def page(session: Session, caller: Caller, limit: int, before: int | None, script: str | None) -> list[Row[Any]]:
    """Up to `limit` schedules that the caller may see, newest first, with numbers below `before`."""
    statement = _select().where(visible(Schedule, caller.viewer))
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
    submissions.require_scopes(Submission(caller.user_id, [job]), caller)
    table = Timetable(**{name: values[name] for name in _TABLE}, anchor=now)
    kind = next(name for name in ("cron", "every", "at") if values[name] is not None)
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
    instant = table.next(max(now, row.last_instant or now))
    due = instant and table.late(instant) if row.enabled else None
    session.execute(update(Schedule).where(Schedule.id == number).values(instant=instant, due_at=due))


def change(session: Session, caller: Caller, number: int, request: Mapping[str, Any], means: Means) -> Row[Any]:
    """Change what is named (see `schedule_schemas.SchedulePatch`).

    Raises `NotFound`, `NotAllowed`, `InvalidRequest`.
    """
    row = _own(session, caller, number)
    values = {name: getattr(row, name) for name in (*_TABLE, "version", "parameters", "overrides")}
    if any(request.get(name) is not None for name in ("cron", "every", "at")):
        values |= dict.fromkeys(("cron", "every", "at"))
    values |= request
    found = _script_of(session, caller, _name_of(caller, row.script))
    now = clock(session)
    _check(session, caller, found, values, means, now)
    changes = {**request, **{name: values[name] for name in ("cron", "every", "at")}}
    session.execute(
        update(Schedule).where(Schedule.id == number).values(**changes, script_id=found.id, modified=now, problem=None)
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
    found: Iterator[datetime] = table.after(max(now, row.last_instant or now))
    return [table.late(instant) for instant, _ in zip(found, range(count), strict=False)]


def run_now(session: Session, caller: Caller, number: int, rules: Jobs) -> tuple[Found, NewJob]:
    """The job of a schedule that fires at once, beside its instants. Raises as `change` does."""
    row = find(session, caller, number)
    if row.user_id != caller.user_id:
        raise NotAllowed("Only its owner can let a schedule run, as its jobs are his.")
    found = _script_of(session, caller, _name_of(caller, row.script))
    said = _said(session, found, row.version)
    said = dataclasses.replace(said, notify=[*said.notify, *submissions.targets(row.user_id, row.notify)])
    return found, _job(caller.user_id, said, row.parameters, row.overrides, rules, number)


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
        return Submission(row.user_id, [job], audit=entry, overlap=row.overlap)


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
    fires = [_prepared(row, now, timedelta(seconds=grace), rules) for row in _locked(session, ids, now)]
    wanted = [item for item in fires if item.job is not None]
    results = submissions.submit([item.submission for item in wanted], limits).on(session) if wanted else []
    for item, result in zip(wanted, results, strict=True):
        _note(item, result, now)
    _move_on(session, fires)
    return len(fires)


def _due(session: Session, now: datetime) -> list[int]:
    """Schedules that are due, the longest first: as many as fit into one transaction."""
    version = and_(
        ScriptVersion.script_id == Script.id,
        ScriptVersion.number == func.coalesce(Schedule.version, Script.version),
    )
    rows = session.execute(
        select(
            *(Schedule.id, Schedule.script_id, func.coalesce(Content.size, 0).label("size")),
            func.coalesce(Schedule.overlap, Script.overlap).label("overlap"),
        )
        .select_from(Schedule)
        .outerjoin(Script, Script.id == Schedule.script_id)
        .outerjoin(ScriptVersion, version)
        .outerjoin(Content, Content.digest == ScriptVersion.digest)
        .where(Schedule.due_at <= now)
        .order_by(Schedule.due_at, Schedule.id)
        .limit(_AT_ONCE)
    )
    ids: list[int] = []
    size, scripts_seen = 0, set()
    for row in rows:
        if row.overlap in _ALONE and row.script_id in scripts_seen:
            continue  # its turn comes in the next transaction
        size += row.size
        if ids and size > _LARGE:
            break
        ids.append(row.id)
        scripts_seen.add(row.script_id)
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
            *(ScriptVersion.number, Content.code, Content.shell, Content.defaults),
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
    if missed:
        instant = _caught_up(row, table, now, grace)
    if instant is None or table.late(instant) > now:
        item = _Fire(row, None, _standing(row, table, instant))
        item.values["problem"] = f"Missed, as nobody fired it then: {rfc3339(row.instant)}, and what came after."
    else:
        item = _Fire(row, instant, _standing(row, table, table.next(instant)))
    if problem := _gone(row):
        item.pause(problem)
    elif item.instant is not None:
        name = Name(*row.script.split("/"))
        what = row.number, row.code, row.shell, row.declared, row.defaults
        told = submissions.targets(row.script_user_id, row.script_notify)
        said = Said(row.script_id, name, *what, [*told, *submissions.targets(row.user_id, row.notify)])
        item.values["last_instant"] = item.instant
        try:
            item.job = _job(row.user_id, said, row.parameters, row.overrides, rules, row.id, item.instant)
        except InvalidRequest as error:
            item.values["problem"] = _refused(item.instant, error)
    return item


def _standing(row: Row[Any], table: Timetable, instant: datetime | None) -> dict[str, Any]:
    """How a schedule stands when this is the instant that it has not fired for yet."""
    kept = {name: getattr(row, name) for name in ("id", "enabled", "last_instant", "last_job_id")}
    return {**kept, "instant": instant, "due_at": instant and table.late(instant), "problem": None}


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
        item.values["problem"] = _refused(item.instant, result)
    elif isinstance(result, Overlaps):
        item.values["problem"] = f"At {rfc3339(item.instant)} it was skipped: {result.message}"
    elif isinstance(result, Conflict | NotAllowed):  # archived, or its owner deactivated, just now
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
                  last_instant = r.last_instant, last_job_id = r.last_job_id
                FROM json_to_recordset(CAST(:rows AS json)) AS r(id int, instant timestamptz, due_at timestamptz,
                  enabled boolean, problem text, last_instant timestamptz, last_job_id uuid)
                WHERE s.id = r.id
                """
            ),
            {"rows": orjson.dumps([item.values for item in fires]).decode()},
        )
