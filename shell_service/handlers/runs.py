"""Runs: run a script, and see how its jobs went."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from baselayer.access import Caller
from baselayer.errors import (
    Conflict,
    IdempotencyMismatch,
    InvalidRequest,
    LimitReached,
    NotAllowed,
    NotFound,
    Unavailable,
)
from baselayer.handler import Call, Route, endpoint
from shell_service import runs, schemas, script_schemas, scripts, submissions
from shell_service.handlers.base import encode_cursor, job_cursor
from shell_service.handlers.jobs import SubmitHandler
from shell_service.handlers.scripts import ScriptHandler
from shell_service.runs import Said
from shell_service.scripts import Name


class Run(SubmitHandler, ScriptHandler):
    @endpoint(
        "scripts:run",
        body=script_schemas.RunRequest,
        query=schemas.WaitQuery,
        answer=schemas.JobRecord(),
        errors=[NotFound, LimitReached, NotAllowed, Conflict, IdempotencyMismatch, Unavailable],
        headers=["Idempotency-Key", "Prefer"],
        action="script.run",
    )
    async def post(self, call: Call, script: str, owner: str | None = None) -> Any:
        """Run a script.

        Makes a job of its newest version, or of the one that is named, and answers with that as `POST /api/jobs` does.
        The job is the caller's, with his limits and secrets. Where another job of the script has not ended, the
        script's `overlap` says what happens.
        """
        body, name = call.body, self.name_of(call, script, owner)
        wait = self.wait_of(call)
        if body["wait"] is not None:
            if wait is not None:
                raise InvalidRequest.of({"wait": ["Give it once: here, as a query parameter, or in Prefer."]})
            call.query["wait"] = body["wait"]
            wait = self.wait_of(call)
        if before := await self.made_before(call, wait):
            return before
        found = await self.app.scripts.put(runs.Wanted(call.caller, name, body["version"]))
        said = Said.of(found, found.row)
        run = runs.make(said, body["parameters"], body["overrides"], self.app.rules.jobs, body["share_output"])
        job = submissions.new_job(call.caller.user_id, run.request, **run.origin)
        entry = self.entry(found.name, {"version": job.script_version, "job": job.public_id})
        return await self.submit_run(call, job, entry, found, None, wait)


class RunStatus(ScriptHandler):
    @endpoint("scripts:read", answer=script_schemas.ScriptStatus(), errors=[NotFound])
    async def get(self, call: Call, script: str, owner: str | None = None) -> Any:
        """See how a script does.

        Its newest job, the last that succeeded and the last that failed, and figures of the last 100 that ended: of
        all for its owner and administrators, for others of their own.
        """
        return await self.app.database.ask(_status, call.caller, self.name_of(call, script, owner))


class RunJobs(ScriptHandler):
    @endpoint(
        "scripts:read",
        query=script_schemas.RunsQuery,
        answer=script_schemas.RunRecord(many=True),
        errors=[NotFound],
    )
    async def get(self, call: Call, script: str, owner: str | None = None) -> Any:
        """List a script's jobs, newest first.

        All for its owner and administrators, for others their own. What somebody else's job printed is not told, unless
        he shared that.
        """
        query, name = call.query, self.name_of(call, script, owner)
        which = query["status"], query["limit"], job_cursor(query["cursor"])
        page, following = await self.app.database.ask(_page, call.caller, name, *which)
        self.link_next(encode_cursor(following.bytes) if following else None)
        return page


def _status(session: Session, caller: Caller, name: Name) -> dict[str, Any]:
    return runs.status(session, scripts.find(session, caller, name), caller)


def _page(session: Session, caller: Caller, name: Name, *which: Any) -> Any:
    status, limit, before = which
    return runs.page(session, scripts.find(session, caller, name), caller, status, limit, before)


_ONE, _OWN = "/api/scripts/{owner}/{script}", "/api/scripts/{script}"
ROUTES = [
    Route(f"{_ONE}/{rest}", handler, f"{_OWN}/{rest}")
    for rest, handler in {"run": Run, "status": RunStatus, "jobs": RunJobs}.items()
]
