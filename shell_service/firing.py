"""Firing: the jobs that schedules make when they are due.

Whoever fires a schedule holds its row, and moves it on in the transaction that stores the job. So there is one job for
each instant, however many schedulers there are and whatever becomes of them; and clocks that are put back fire nothing
twice.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import Integer, Row, Select, and_, bindparam, case, func, select, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from baselayer.errors import ApiError, InvalidRequest, LimitReached, NotAllowed
from baselayer.fields import rfc3339
from baselayer.models import User
from baselayer.query import Query, Rows
from baselayer.visibility import Viewer
from shell_service import runs, schedules, scripts, submissions
from shell_service.audit import Entry
from shell_service.models import Content, Schedule, Script, ScriptVersion
from shell_service.runs import Run, Said
from shell_service.scripts import Level, Name
from shell_service.settings import Jobs
from shell_service.submissions import Archived, Inactive, Limits, NewJob, Overlaps, Stored, Submission
from shell_service.timetable import Timetable, Unusable

logger = logging.getLogger(__name__)

_LOOKED_FOR = 10_000  # schedules that one look finds
_AT_ONCE = 100  # that one transaction fires: while it is flushed to disk, and that takes by its size, no other ends
_LARGE = 4_000_000  # bytes of scripts after which it takes no more
_RETRY = timedelta(seconds=10)  # after which one is fired again whose owner had too many jobs
_SECONDS = 1.0  # after which a transaction prepares no more: the rows of those it has are locked meanwhile
_ALONE = ("skip", *schedules.CANCELLING)  # of a script only one such job is stored at once
_VERSION = and_(  # that a schedule runs of its script
    ScriptVersion.script_id == Script.id,
    ScriptVersion.number == func.coalesce(Schedule.version, Script.version),
)


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
        return Submission(row.user_id, [job], audit=entry, overlap=schedules.overlap_of(row.overlap, Level(row.level)))


class _Runs:
    """What schedules run: many of one script ask for the same, which is made once. And until when that is held."""

    def __init__(self, rules: Jobs, held_until: datetime | None) -> None:
        self._rules = rules
        self.held_until = held_until
        self._made: dict[bytes, Run] = {}

    def of(self, row: Row[Any]) -> Run:
        """What a schedule runs. Raises as `runs.make` does."""
        key = orjson.dumps([row.script_id, row.script, row.number, row.parameters, row.overrides])
        if key not in self._made:
            what = row.number, row.code, row.shell, row.declared, row.defaults
            told = submissions.targets(row.script_user_id, row.script_notify)
            files = row.upload and row.upload.hex(), row.entrypoint
            said = Said(row.script_id, Name(*row.script.split("/")), *what, told, *files)
            self._made[key] = runs.make(said, row.parameters, row.overrides, self._rules, share=False)
        return self._made[key]


@dataclass(frozen=True)
class Part:
    """Numbers of schedules that fit into one transaction; and whether their jobs are to be held while others fire."""

    ids: list[int]
    held: bool


def due(session: Session) -> list[Part]:
    """The schedules that are due the longest: each user's first, then those of one user after those of another.

    Of a script whose jobs are skipped or cancelled for one another only one: the others come with the next call. A
    transaction so locks and counts for few users; and who has few schedules does not wait for who has many.
    """
    first: list[Row[Any]] = []
    others: list[Row[Any]] = []
    users: set[int] = set()
    for row in session.execute(_due()):
        (others if row.user_id in users else first).append(row)
        users.add(row.user_id)
    others.sort(key=lambda row: (row.user_id, row.script_id))
    return [*_parts(first, False), *_parts(others, True)]


def seconds_until_due(most: float) -> Query[float]:
    """For how long nothing is due, as far as is known now, but at most so many seconds; not above 0: something is."""

    def read(rows: Rows) -> float:
        seconds = rows[0][0]
        return most if seconds is None else min(most, float(seconds))

    statement = "SELECT extract(epoch FROM min(due_at) - statement_timestamp()) FROM schedule"
    return Query(statement, {}, read, kept=True)


def _parts(rows: Sequence[Row[Any]], held: bool) -> Iterator[Part]:
    part, size = Part([], held), 0
    for row in rows:
        size += row.size
        if part.ids and (size > _LARGE or len(part.ids) == _AT_ONCE):
            yield part
            part, size = Part([], held), row.size
        part.ids.append(row.id)
    if part.ids:
        yield part


@functools.cache
def _due() -> Select[*tuple[Any, ...]]:
    """The schedules that are due the longest, and how many bytes the job of each is about."""
    overlap = func.coalesce(Schedule.overlap, Script.overlap)
    alone = case((overlap.in_(_ALONE), Schedule.script_id), else_=-Schedule.id)
    found = (
        select(
            *(Schedule.id, Schedule.user_id, Schedule.script_id, Schedule.due_at),
            func.row_number().over(partition_by=alone, order_by=(Schedule.due_at, Schedule.id)).label("turn"),
            (
                func.coalesce(Content.size, 0)
                + func.pg_column_size(Schedule.overrides)
                + func.pg_column_size(Schedule.parameters)
            ).label("size"),
        )
        .select_from(Schedule)
        .outerjoin(Script, Script.id == Schedule.script_id)
        .outerjoin(ScriptVersion, _VERSION)
        .outerjoin(Content, Content.digest == ScriptVersion.digest)
        .where(Schedule.due_at <= func.statement_timestamp())
        .subquery()
    )
    return (
        select(found.c.id, found.c.user_id, found.c.script_id, found.c.size)
        .where(found.c.turn == 1)
        .order_by(found.c.due_at, found.c.id)
        .limit(_LOOKED_FOR)
    )


def fire(session: Session, ids: Sequence[int], limits: Limits, rules: Jobs, grace: float, hold: float = 0.0) -> int:
    """Fire those of these schedules that are due and that nobody else fires just now; returns how many it fired.

    As many as can be prepared in a second: the others are still due. What is older than `grace` seconds was missed; the
    schedule's `catch_up` says what becomes of that. `hold` is for how many seconds their jobs are held.
    """
    now = schedules.clock(session)
    made = _Runs(rules, now + timedelta(seconds=hold) if hold else None)
    rows = session.execute(_locked(), {"ids": list(ids), "now": now}).all()
    fires = _some(rows, lambda row: _prepared_or_paused(row, now, timedelta(seconds=grace), made))
    wanted = [item for item in fires if item.job is not None]
    # Nobody has to wait for the disk: a crash of the database takes all of this back, and then it fires again; or
    # nothing of it, as what others have written since then is on the disk, and what came before with it.
    session.execute(text("SET LOCAL synchronous_commit = off"))
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


@functools.cache
def _locked() -> Select[*tuple[Any, ...]]:
    """Of the schedules `ids` those due at `now`, with all that firing them takes, locked; but none that others have."""
    viewer = Viewer(Schedule.__table__.c.user_id, User.role == "admin")
    columns = [
        column.label(f"script_{column.name}")
        for column in (Script.name, Script.archived_at, Script.user_id, Script.notify)
    ]
    return (
        select(
            *Schedule.__table__.columns,
            *(User.username, User.active, scripts.level_of(viewer).label("level"), *columns),
            *(ScriptVersion.number, Content.code, Content.upload, Content.entrypoint, Content.shell, Content.defaults),
            Content.parameters.label("declared"),
        )
        .select_from(Schedule)
        .join(User, User.id == Schedule.user_id)
        .outerjoin(Script, Script.id == Schedule.script_id)
        .outerjoin(ScriptVersion, _VERSION)
        .outerjoin(Content, Content.digest == ScriptVersion.digest)
        .where(Schedule.id == func.any(bindparam("ids", type_=ARRAY(Integer))), Schedule.due_at <= bindparam("now"))
        .order_by(Schedule.id)
        .with_for_update(of=Schedule, skip_locked=True)
    )


def _prepared(row: Row[Any], now: datetime, grace: timedelta, made: _Runs) -> _Fire:
    """What a due schedule does: the job that it makes, and the instant that it stands at afterwards."""
    table, instant = schedules.timetable(row), row.instant
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
        item.values["last_instant"] = item.instant
        try:
            job = schedules.job_of(row.user_id, made.of(row), row.notify, row.id, item.instant, made.held_until)
            submissions.require_scopes(Submission(row.user_id, [job]), row.scopes)
            item.job = job
        except (InvalidRequest, NotAllowed) as error:
            item.values["problem"] = _refused(item.instant, error)
    return item


def _prepared_or_paused(row: Row[Any], now: datetime, grace: timedelta, made: _Runs) -> _Fire:
    """As `_prepared`; one that fails, as when its time zone is no more, is paused, and keeps no other from firing."""
    try:
        return _prepared(row, now, grace, made)
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
