"""Schedules: let scripts run at times."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from sqlalchemy import Row
from sqlalchemy.orm import Session

from baselayer.access import Caller
from baselayer.errors import (
    Conflict,
    IdempotencyMismatch,
    LimitReached,
    NotAllowed,
    NotFound,
    Unavailable,
)
from baselayer.fields import rfc3339
from baselayer.handler import Call, Route, endpoint
from shell_service import schedule_schemas, schedules, schemas
from shell_service.audit import Entry
from shell_service.handlers.base import AppHandler, number_of
from shell_service.handlers.jobs import SubmitHandler
from shell_service.schedules import Means
from shell_service.timetable import zone


class ScheduleHandler(AppHandler):
    """What handlers of schedules have in common."""

    @property
    def means(self) -> Means:
        return Means(self.app.settings.schedules, self.app.rules.jobs)

    def said(self, row: Row[Any]) -> Entry:
        """The audit entry about a schedule that is, or was, as in this row."""
        times = {name: getattr(row, name) for name in ("cron", "every", "version") if getattr(row, name) is not None}
        at = {"at": rfc3339(row.at)} if row.at else {}
        return self.entry(row.id, {"script": row.script, **times, **at, "timezone": row.timezone})


class Schedules(ScheduleHandler):
    @endpoint(
        "schedules:write",
        body=schedule_schemas.ScheduleRequest,
        answer=schedule_schemas.ScheduleRecord(),
        errors=[NotAllowed, Conflict],
        action="schedule.create",
    )
    async def post(self, call: Call) -> Any:
        """Make a schedule.

        At the times that `cron`, `every` or `at` says it makes a job of the script: a job of its owner's, as if he had
        run the script then. The token needs the scope `scripts:run` as well.
        """
        call.caller.require("scripts:run")
        return schedules.record(await self.change(self.said, schedules.create, call.caller, call.body, self.means))

    @endpoint(
        "schedules:read",
        query=schedule_schemas.SchedulesQuery,
        answer=schedule_schemas.ScheduleRecord(many=True),
    )
    async def get(self, call: Call) -> Any:
        """List schedules, newest first.

        One's own; administrators see all.
        """
        limit, before = self.page_wanted(call)
        rows = await self.app.database.ask(schedules.page, call.caller, limit + 1, before, call.query["script"])
        return [schedules.record(row) for row in self.page_of(rows, limit, attrgetter("id"))]


class Schedule(ScheduleHandler):
    @endpoint("schedules:read", answer=schedule_schemas.ScheduleRecord(), errors=[NotFound])
    async def get(self, call: Call, schedule_id: str) -> Any:
        """See a schedule."""
        return schedules.record(await self.app.database.ask(schedules.find, call.caller, number_of(schedule_id)))

    @endpoint(
        "schedules:write",
        body=schedule_schemas.SchedulePatch,
        answer=schedule_schemas.ScheduleRecord(),
        errors=[NotFound, NotAllowed, Conflict],
        action="schedule.change",
    )
    async def patch(self, call: Call, schedule_id: str) -> Any:
        """Change a schedule.

        What is not named stays as it is. It goes on from now: what it has fired for is not fired again.
        """
        call.caller.require("scripts:run")
        what = call.caller, number_of(schedule_id), call.body, self.means
        return schedules.record(await self.change(self.said, schedules.change, *what))

    @endpoint("schedules:write", answer=schemas.Nothing(), errors=[NotFound], action="schedule.delete")
    async def delete(self, call: Call, schedule_id: str) -> Any:
        """Delete a schedule.

        The jobs that it made stay.
        """
        await self.change(self.said, schedules.remove, call.caller, number_of(schedule_id))
        return {}


class Next(ScheduleHandler):
    @endpoint(
        "schedules:read",
        query=schedule_schemas.NextQuery,
        answer=schedule_schemas.FireRecord(many=True),
        errors=[NotFound],
    )
    async def get(self, call: Call, schedule_id: str) -> Any:
        """See when a schedule fires next.

        As it would if it is paused and resumed now.
        """
        row, found = await self.app.database.ask(_coming, call.caller, number_of(schedule_id), call.query["count"])
        place = zone(row.timezone)
        return [{"at": rfc3339(item), "local": item.astimezone(place).isoformat(timespec="seconds")} for item in found]


class Pause(ScheduleHandler):
    @endpoint(
        "schedules:write",
        answer=schedule_schemas.ScheduleRecord(),
        errors=[NotFound],
        action="schedule.pause",
    )
    async def post(self, call: Call, schedule_id: str) -> Any:
        """Pause a schedule.

        It does not fire until it is resumed. What it made goes on.
        """
        return schedules.record(await self.change(self.said, schedules.pause, call.caller, number_of(schedule_id)))


class Resume(ScheduleHandler):
    @endpoint(
        "schedules:write",
        answer=schedule_schemas.ScheduleRecord(),
        errors=[NotFound, NotAllowed, Conflict],
        action="schedule.resume",
    )
    async def post(self, call: Call, schedule_id: str) -> Any:
        """Resume a schedule.

        It fires again, from now on: what was missed while it was paused is not made up for.
        """
        call.caller.require("scripts:run")
        what = call.caller, number_of(schedule_id), self.means
        return schedules.record(await self.change(self.said, schedules.resume, *what))


class RunNow(SubmitHandler, ScheduleHandler):
    @endpoint(
        "schedules:write",
        query=schemas.WaitQuery,
        answer=schemas.JobRecord(),
        errors=[NotFound, LimitReached, NotAllowed, Conflict, IdempotencyMismatch, Unavailable],
        headers=["Idempotency-Key", "Prefer"],
        action="schedule.run",
    )
    async def post(self, call: Call, schedule_id: str) -> Any:
        """Let a schedule run now.

        Makes the job that it would make at its next time, which stays as it is, paused or not.
        """
        call.caller.require("scripts:run")
        wait, number = self.wait_of(call), number_of(schedule_id)
        found, job, overlap = await self.app.database.run(schedules.run_now, call.caller, number, self.app.rules.jobs)
        entry = self.entry(number, {"script": str(found.name), "version": job.script_version, "job": job.public_id})
        return await self.submit_run(call, job, entry, found, overlap, wait)


def _coming(session: Session, caller: Caller, number: int, count: int) -> Any:
    row = schedules.find(session, caller, number)
    return row, schedules.coming(row, schedules.clock(session), count)


_ONE = "/api/schedules/{schedule_id}"
ROUTES = [
    Route("/api/schedules", Schedules),
    Route(_ONE, Schedule),
    Route(f"{_ONE}/next", Next),
    Route(f"{_ONE}/pause", Pause),
    Route(f"{_ONE}/resume", Resume),
    Route(f"{_ONE}/run", RunNow),
]
