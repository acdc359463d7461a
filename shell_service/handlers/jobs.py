"""Jobs: submit, see, cancel, run again."""

from __future__ import annotations

import asyncio
import hashlib
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy.orm import Session

from baselayer.access import Caller
from baselayer.batch import Batcher
from baselayer.bodies import LARGE_BODY
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
from shell_service import jobs, queue, retention, runs, schemas, submissions
from shell_service.audit import Entry
from shell_service.handlers.base import AppHandler, encode_cursor, job_cursor
from shell_service.handlers.files import FilesHandler
from shell_service.hub import Watch
from shell_service.jobs import Wanted
from shell_service.records import Record
from shell_service.scripts import Found, Level, Name
from shell_service.shells import AUTO
from shell_service.submissions import NewJob, Overlaps, Stored, Submission

_MAX_WAIT = 300  # seconds


class SubmitHandler(AppHandler):
    """What storing new jobs has in common."""

    async def submit(
        self,
        call: Call,
        new: Sequence[NewJob],
        batcher: Batcher[Submission, Stored],
        entry: Entry,
        batch: bool = False,
        overlap: str | None = None,
    ) -> Stored:
        """Store jobs, or find those that the same request stored before. `entry` is for the audit log, if they are new.

        Raises `NotAllowed` where a job needs what the caller's token is not good for.
        """
        key, digest = await self._key(call)
        submission = Submission(call.caller.user_id, new, key, digest, entry, batch, overlap)
        submissions.require_scopes(submission, call.caller.scopes)
        return await batcher.put(submission)

    def wait_of(self, call: Call) -> float | None:
        """Seconds that the caller wants to wait for the job's end. Raises `Unavailable` where too many do."""
        wait: float | None = call.query["wait"]
        if wait is None and (prefer := call.header("Prefer")):
            wait = _preferred_wait(prefer)
            if wait is not None:
                self.set_header("Preference-Applied", f"wait={wait}")
        if wait and len(self.app.hub) >= self.app.settings.server.max_waiting:
            raise Unavailable("Too many requests wait for jobs already; submit without waiting, and ask later.")
        return wait

    async def submit_and_wait(
        self,
        call: Call,
        job: NewJob,
        batcher: Batcher[Submission, Stored],
        entry: Entry,
        seconds: float | None,
        overlap: str | None = None,
    ) -> Record:
        """As `submit_one`; with `seconds` its record when it has ended, or after that time."""
        if not seconds:
            return await self.submit_one(call, job, entry, batcher, overlap)
        return await call.unless_closed(self._submit_and_wait(call, job, batcher, entry, seconds, overlap))

    async def _submit_and_wait(
        self,
        call: Call,
        job: NewJob,
        batcher: Batcher[Submission, Stored],
        entry: Entry,
        seconds: float,
        overlap: str | None,
    ) -> Record:
        with self.app.hub.watch(job.id, end_only=True) as watch:  # before it is stored, so that no end is missed
            stored = await self.submit(call, [job], batcher, entry, overlap=overlap)
            job_id = stored.ids[0]
            if job_id == job.id:
                return await self.record_when_final(call, job_id, watch, seconds, job)
        with self.app.hub.watch(job_id, end_only=True) as watch:
            return await self.record_when_final(call, job_id, watch, seconds)

    async def _key(self, call: Call) -> tuple[str | None, bytes]:
        """The request's Idempotency-Key, and what it asks for. Raises `InvalidRequest`."""
        key = call.header("Idempotency-Key")
        if key is None:
            return None, b""
        if not re.fullmatch(r"[\x21-\x7e]{1,255}", key):
            raise InvalidRequest("Idempotency-Key must be 1 to 255 printable ASCII characters without spaces.")
        path, body = self.request.path, self.request.body
        if len(body) < LARGE_BODY:
            return key, _digest(path, body)
        return key, await asyncio.to_thread(_digest, path, body)

    async def made_before(self, call: Call, seconds: float | None) -> Record | None:
        """The record of the job that the same request made before, if it did; waited for as `submit_and_wait` does.

        For requests that might be refused by now for what has changed since. Raises `IdempotencyMismatch`.
        """
        key, digest = await self._key(call)
        known = None if key is None else await self.app.database.fetch(submissions.known(call.caller.user_id, key))
        if known is None:
            return None
        if known.digest != digest:
            raise IdempotencyMismatch
        if not seconds:
            return await self.record(call.caller, known.ids[0])
        with self.app.hub.watch(known.ids[0], end_only=True) as watch:
            return await call.unless_closed(self.record_when_final(call, known.ids[0], watch, seconds))

    async def submit_run(
        self, call: Call, job: NewJob, entry: Entry, script: Found, overlap: str | None, seconds: float | None
    ) -> Record:
        """As `submit_and_wait`, of a job of a script; `overlap` instead of what the script says of others, if given."""
        batcher = self.app.batcher(overlap or script.row.overlap)
        try:
            return await self.submit_and_wait(call, job, batcher, entry, seconds, overlap)
        except Overlaps as error:
            raise await self._told(call, script, error) from None

    async def _told(self, call: Call, script: Found, error: Overlaps) -> Overlaps:
        """The same error, with the id of the other job where the caller may know it."""
        assert error.job_id is not None
        seen = await self.app.database.ask(jobs.find_many, [Wanted(call.caller, error.job_id)], jobs.STANDING)
        if seen[0] or script.level is Level.OWN:
            job_id = jobs.public_id(script.row.name, error.job_id)
            error.message = f"The job {job_id} of the script {script.name} has not ended yet: this run is skipped."
            error.errors = {"job": [job_id]}
        return error

    async def submit_one(
        self,
        call: Call,
        job: NewJob,
        entry: Entry,
        batcher: Batcher[Submission, Stored],
        overlap: str | None = None,
    ) -> Record:
        """Store a job, or find the one that the same request stored before; returns its record."""
        stored = await self.submit(call, [job], batcher, entry, overlap=overlap)
        if stored.ids[0] == job.id:
            return self.app.records.of_new(job, call.caller, stored.limits)
        return await self.record(call.caller, stored.ids[0])

    async def record(self, caller: Caller, job_id: uuid.UUID, size: int | None = None) -> Record:
        """The whole record of a job, of which `size` is known if it was submitted just now. Raises `NotFound`."""
        found = await self.app.lookups.put(Wanted(caller, job_id, size))
        if found is None:
            raise NotFound
        return found

    async def record_when_final(
        self, call: Call, job_id: uuid.UUID, watch: Watch, seconds: float, new: NewJob | None = None
    ) -> Record:
        """The job's record when it has ended, or, after `seconds` or when this worker is to stop, as it is then.

        One that is not `new`, and was not stored just now, may have ended before we watched it.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        watch.changed = watch.changed or new is None
        while True:
            while not (watch.changed or self.app.hub.closing) and loop.time() < end:
                await watch.wait(end - loop.time())
            watch.changed = False
            await self.app.authenticator.authenticate(call.header("Authorization"), "")  # it may be revoked by now
            record = await self.record(call.caller, job_id, new.size if new else None)
            if record["finished_at"] is not None or loop.time() >= end or self.app.hub.closing:
                return record


class Jobs(SubmitHandler, FilesHandler):
    @endpoint(
        "jobs:write",
        body=schemas.SubmitRequest,
        query=schemas.WaitQuery,
        answer=schemas.JobRecord(),
        errors=[LimitReached, NotAllowed, Conflict, IdempotencyMismatch, Unavailable],
        headers=["Idempotency-Key", "Prefer"],
        action="job.submit",
        form=True,
    )
    async def post(self, call: Call) -> Any:
        """Submit a job.

        It is code, or files of which one is run. Answers with the job as soon as it is stored; with `wait`, or the
        header `Prefer: wait=SECONDS`, when it has ended or after so many seconds. The same `Idempotency-Key` with the
        same request gives the same job again.
        """
        wait = self.wait_of(call)
        job = submissions.new_job(call.caller.user_id, await self.keep_files(call))
        entry = self.entry(job.public_id, {"upload": job.upload} if job.upload else None)
        return await self.submit_and_wait(call, job, self.app.submissions, entry, wait)

    @endpoint("jobs:read", query=schemas.ListQuery, answer=schemas.JobRecord(many=True))
    async def get(self, call: Call) -> Any:
        """List jobs, newest first.

        One's own; administrators see everybody's. The `Link` header names the next page. What could be long is short
        here, or left out; `GET /api/jobs/{id}` shows all of it.
        """
        limit, before = call.query["limit"], job_cursor(call.query["cursor"])
        page, following = await self.app.database.ask(
            self.app.records.page, call.caller, _filter(call.query), limit, before
        )
        self.link_next(encode_cursor(following.bytes) if following else None)
        return page


class Batch(SubmitHandler):
    @endpoint(
        "jobs:write",
        body=schemas.BatchRequest,
        answer=schemas.JobRecord(many=True),
        errors=[LimitReached, NotAllowed, Conflict, IdempotencyMismatch, Unavailable],
        headers=["Idempotency-Key"],
        action="job.submit",
    )
    async def post(self, call: Call) -> Any:
        """Submit 1 to 1,000 jobs, all or none of them.

        Errors are given by the job's index. Answers with the jobs in the order of the request, each as short as in
        a list.
        """
        new = await asyncio.to_thread(_new_jobs, call.caller.user_id, call.body["jobs"])
        entry = self.entry(new[0].public_id, {"jobs": len(new), "last": new[-1].public_id})
        stored = await self.submit(call, new, self.app.batches, entry, batch=True)
        if stored.ids[0] == new[0].id:
            return await asyncio.to_thread(self.app.records.of_new_batch, new, call.caller, stored.limits)
        return await self.app.database.ask(self.app.records.of_batch, call.caller, stored.ids)


class CancelMany(AppHandler):
    @endpoint("jobs:write", body=schemas.Filters, answer=schemas.Cancelled(), action="job.cancel")
    async def post(self, call: Call) -> Any:
        """Cancel all jobs that match, and have not ended.

        Takes the filters of the list. Without any, all of one's own jobs are cancelled; with one, an administrator
        cancels everybody's jobs that match. Jobs that are submitted meanwhile stay.
        """
        wanted = _filter(call.body)
        if wanted == jobs.Filter():
            wanted = jobs.Filter(submitter=call.caller.username)
        cancelled = 0
        last = await self.app.database.ask(jobs.newest)  # those that come meanwhile are not meant: there is an end
        entry: Entry | None = self.entry(None, {name: value for name, value in vars(wanted).items() if value})
        while count := await self.app.database.ask(_cancel_matching, call.caller, wanted, last, entry):
            cancelled += count
            entry = None  # one tells of the request, and is there as soon as any of it is done
            self.app.failpoints.reach("app.after_cancel")
        return {"cancelled": cancelled}


class Job(AppHandler):
    @endpoint("jobs:read", answer=schemas.JobRecord(), errors=[NotFound])
    async def get(self, call: Call, job_id: str) -> Any:
        """See a job.

        The record holds the last 64 KiB of each output stream. While it is PENDING, `position` and `pending_reason`
        tell what it waits for.
        """
        return await self.app.database.ask(self.app.records.of_one, call.caller, job_id)


class Cancel(AppHandler):
    @endpoint("jobs:write", answer=schemas.JobRecord(), errors=[NotFound, NotAllowed], action="job.cancel")
    async def post(self, call: Call, job_id: str) -> Any:
        """Cancel a job.

        A waiting job ends at once. A running one gets SIGTERM, and after a grace time SIGKILL with all that it
        started; its status changes when it has ended. A job that has ended stays as it is.
        """
        record = await self.app.database.ask(self._cancel, call.caller, job_id, self.entry(job_id))
        self.app.failpoints.reach("app.after_cancel")
        return record

    def _cancel(self, session: Session, caller: Caller, job_id: str, entry: Entry) -> Record:
        found = jobs.find(session, caller, job_id)
        if found.row.user_id != caller.user_id and not caller.is_admin:
            raise NotAllowed("Only its owner can cancel a job.")
        queue.cancel(session, [] if found.final else [found.job_id], caller.username, entry)
        return self.app.records.of_one(session, caller, job_id)


class Pin(AppHandler):
    @endpoint("jobs:write", answer=schemas.JobRecord(), errors=[NotFound, NotAllowed, Conflict], action="job.pin")
    async def post(self, call: Call, job_id: str) -> Any:
        """Pin a job.

        It stays, with what it printed, however old it is.
        """
        return await self._pin(call, job_id, True)

    @endpoint("jobs:write", answer=schemas.JobRecord(), errors=[NotFound, NotAllowed], action="job.unpin")
    async def delete(self, call: Call, job_id: str) -> Any:
        """Unpin a job.

        It goes when others of its age go.
        """
        return await self._pin(call, job_id, False)

    async def _pin(self, call: Call, job_id: str, pinned: bool) -> Any:
        most = self.app.settings.retention.max_pinned
        await self.change(lambda _: self.entry(job_id), retention.pin, call.caller, job_id, pinned, most)
        return await self.app.database.ask(self.app.records.of_one, call.caller, job_id)


class Rerun(SubmitHandler):
    @endpoint(
        "jobs:write",
        body=schemas.RerunRequest,
        answer=schemas.JobRecord(),
        errors=[NotFound, LimitReached, NotAllowed, Conflict, IdempotencyMismatch, Unavailable],
        headers=["Idempotency-Key"],
        action="job.rerun",
    )
    async def post(self, call: Call, job_id: str) -> Any:
        """Run a job again.

        Makes a new job of yours with the same request, to start as soon as it can, with other limits where the body
        names some. Only its owner can: others may not see all of the request.
        """
        found = await self.find(call, job_id, jobs.REQUEST)
        if found.row.user_id != call.caller.user_id:
            raise NotAllowed("Only its owner can run a job again.")
        if found.row.shell not in (*self.app.rules.shells, AUTO):
            raise Conflict(f"The interpreter {found.row.shell} is not offered any more.")
        request = submissions.request_again(found.row, call.body)
        if problems := schemas.secrets_problems(request):
            raise InvalidRequest.of(problems)
        script = await self._script_of(call, found)
        job = submissions.new_job(call.caller.user_id, request, **submissions.origin_of(found.row))
        entry = self.entry(job_id, {"job": job.public_id})
        if script is None:
            return await self.submit_one(call, job, entry, self.app.submissions)
        return await self.submit_run(call, job, entry, script, None, None)

    async def _script_of(self, call: Call, found: jobs.Found) -> Found | None:
        """The script of a job, if it has one. Raises `NotAllowed` where the caller may not run it now."""
        if found.row.script_id is None:
            return None
        name = Name(*found.row.script.split("/"))
        try:
            script = await self.app.scripts.put(runs.Wanted(call.caller, name, None))
        except NotFound:
            script = None
        if script is None or script.id != found.row.script_id:
            raise NotAllowed(f"You may not run the script {name} any more; you can submit the job's code as it is.")
        return script


def _new_jobs(user_id: int, requests: Sequence[Mapping[str, Any]]) -> list[NewJob]:
    return [submissions.new_job(user_id, request) for request in requests]


def _cancel_matching(
    session: Session, caller: Caller, wanted: jobs.Filter, last: uuid.UUID | None, entry: Entry | None
) -> int:
    ids = jobs.matching(session, caller, wanted, queue.CANCEL_AT_ONCE, last) if last else []
    queue.cancel(session, ids, caller.username, entry)
    return len(ids)


def _filter(values: dict[str, Any]) -> jobs.Filter:
    names = ("status", "name", "submitter", "created_after", "created_before")
    return jobs.Filter(**{name: values[name] for name in names})


def _digest(path: str, body: bytes) -> bytes:
    """What a request asks for, in 32 bytes: white space and the order of keys make no other request."""
    canonical = orjson.dumps(orjson.loads(body), option=orjson.OPT_SORT_KEYS) if body else b""
    return hashlib.sha256(path.encode() + b"\0" + canonical).digest()


def _preferred_wait(prefer: str) -> int | None:
    """Seconds to wait that a Prefer header names (RFC 7240, section 4.3)."""
    match = re.search(r"(?:^|[\s,;])wait\s*=\s*([^\s,;]*)", prefer, re.IGNORECASE)
    if match is None:
        return None
    number = re.fullmatch(r'"?(\d{1,3})"?', match[1], re.ASCII)
    if number is None or int(number[1]) > _MAX_WAIT:
        problem = f"wait must be a whole number of seconds, 0 to {_MAX_WAIT}."
        raise InvalidRequest(f"In Prefer, {problem}", {"Prefer": [problem]})
    return int(number[1])


ROUTES = [
    Route("/api/jobs", Jobs),
    Route("/api/jobs/batch", Batch),
    Route("/api/jobs/cancel", CancelMany),
    Route("/api/jobs/{job_id}", Job),
    Route("/api/jobs/{job_id}/cancel", Cancel),
    Route("/api/jobs/{job_id}/rerun", Rerun),
    Route("/api/jobs/{job_id}/pin", Pin),
]
