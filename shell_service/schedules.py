"""Schedules: rules that make jobs from a script at times.

A schedule stands at one instant, `instant`, for which it has not fired yet; `due_at` is when it is looked at next: null
where it is paused, or fires no more. What comes then is in `firing`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import Row, Select, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from baselayer.access import Caller
from baselayer.errors import Conflict, InvalidRequest, NotAllowed, NotFound
from baselayer.fields import rfc3339
from baselayer.models import User
from baselayer.visibility import visible
from shell_service import runs, scripts, submissions
from shell_service.jobs import if_short, public_id
from shell_service.models import Schedule
from shell_service.runs import Run, Said
from shell_service.scripts import Found, Level, Name
from shell_service.settings import Jobs
from shell_service.settings import Schedules as Bounds
from shell_service.submissions import NewJob, Submission
from shell_service.timetable import Timetable, Unusable

CANCELLING = ("cancel_previous", "queue_latest")  # what only who may change a script may let its jobs do
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
        return _script(session, caller, name)
    except (NotAllowed, Conflict) as error:
        raise InvalidRequest.of({"script": [error.message]}) from None


def _script(session: Session, caller: Caller, name: Name) -> Found:
    """A script that a schedule runs. Raises `NotAllowed`, `Conflict`."""
    try:
        return scripts.find(session, caller, name, Level.RUN)
    except NotFound:
        raise Conflict(f"There is no script {name}, or it is not shared with you.") from None


def _check(
    session: Session, caller: Caller, found: Found, values: Mapping[str, Any], means: Means, now: datetime
) -> None:
    """Raise `InvalidRequest` where a schedule would never fire, or its jobs could not be made."""
    said = _said(session, found, values["version"])
    run = runs.make(said, values["parameters"], values["overrides"], means.jobs, share=False)
    submissions.require_scopes(Submission(caller.user_id, [job_of(caller.user_id, run)]), caller.scopes)
    table = Timetable(**{name: values[name] for name in _TABLE}, anchor=now)
    kind = next((name for name in ("cron", "every", "at") if values[name] is not None), None)
    if kind is None:
        raise InvalidRequest.of({"cron": ["Give one of cron, every and at."]})
    if values["overlap"] in CANCELLING and found.level < Level.EDIT:
        raise InvalidRequest.of({"overlap": ["Only who may change the script may let its jobs be cancelled."]})
    if len(orjson.dumps([values["parameters"], values["overrides"]])) > MAX_INPUT:
        raise InvalidRequest.of({"overrides": [f"With the parameters at most {MAX_INPUT} bytes of JSON."]})
    try:
        table.check(means.bounds.min_interval, now)
    except Unusable as error:
        raise InvalidRequest.of({error.field or kind: [str(error)]}) from None


def _said(session: Session, found: Found, version: int | None) -> Said:
    try:
        return Said.of(found, scripts.said(session, found, version))
    except NotFound as error:
        raise InvalidRequest.of({"version": [error.message]}) from None


def job_of(
    user_id: int,
    run: Run,
    notify: Sequence[Mapping[str, Any]] = (),
    schedule: int | None = None,
    instant: datetime | None = None,
    held_until: datetime | None = None,
) -> NewJob:
    """The job that a user's schedule makes; whom it wants told, its number, the instant that it fires for, and the
    moment before which it is not let in."""
    origin = {**run.origin, "notify": [*run.origin["notify"], *submissions.targets(user_id, notify)]}
    origin |= {"schedule_id": schedule, "fired_for": instant, "held_until": held_until}
    return submissions.new_job(user_id, run.request, **origin)


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

    Raises `NotFound`, `NotAllowed`, `InvalidRequest`, and `Conflict` where its script is gone or archived.
    """
    row = _own(session, caller, number)
    values = {name: getattr(row, name) for name in (*_TABLE, "version", "parameters", "overrides", "overlap")}
    if any(request.get(name) is not None for name in ("cron", "every", "at")):
        values |= dict.fromkeys(("cron", "every", "at"))
    values |= request
    found = _script(session, caller, _name_of(caller, row.script))
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
    found = _script(session, caller, _name_of(caller, row.script))
    run = runs.make(_said(session, found, row.version), row.parameters, row.overrides, rules, share=False)
    job = job_of(caller.user_id, run, row.notify, number)
    return found, job, overlap_of(row.overlap, found.level)


def overlap_of(wanted: str | None, level: Level) -> str | None:
    """What a schedule does about other jobs of its script: cancel them only as long as its owner may change that."""
    return None if wanted in CANCELLING and level < Level.EDIT else wanted
