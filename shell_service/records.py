"""What the API tells of jobs: all of one, and a little of many.

A record can hold megabytes: the script, its arguments and variables, the ends of two streams. Where there may be a
thousand of them, in lists and in answers to batches, each is cut to a few kilobytes.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy.orm import Session

from baselayer.access import Caller
from baselayer.fields import rfc3339
from shell_service import jobs, pending
from shell_service.jobs import BRIEF, Filter, Found, Wanted, public_id
from shell_service.limits import NAMES
from shell_service.output import OutputStore, Stream
from shell_service.pending import Reason, Supply
from shell_service.submissions import NewJob

Record = dict[str, Any]

_TAIL = 64 * 1024  # bytes of each stream in the record of one job


class Records:
    """Makes records. All but that of one new job reads files, or takes its time: not for the event loop."""

    def __init__(self, outputs: OutputStore, supply: Supply, max_running: int) -> None:
        """`max_running` is the limit of users who have none of their own."""
        self._outputs = outputs
        self._supply = supply
        self._max_running = max_running

    def of(self, session: Session, wanted: Sequence[Wanted]) -> list[Record | None]:
        """For each, the whole record, or None where there is none that this caller may see."""
        found = jobs.find_many(session, wanted, jobs.RECORD)
        reasons = self._reasons(session, [job for job in found if job])
        return self.of_found(found, wanted, reasons)

    def of_found(
        self,
        found: Sequence[Found | None],
        wanted: Sequence[Wanted],
        reasons: Mapping[uuid.UUID, Reason],
    ) -> list[Record | None]:
        """The same of jobs that have been found already; `reasons` are of those that wait."""
        return [
            _record(job, caller, self._outputs, reasons, _TAIL) if job else None
            for job, (caller, *_) in zip(found, wanted, strict=True)
        ]

    def of_one(self, session: Session, caller: Caller, text_id: str) -> Record:
        """The whole record of the job of this public id, its position included. Raises `NotFound`."""
        found = jobs.find(session, caller, text_id, jobs.RECORD)
        record = _record(found, caller, self._outputs, self._reasons(session, [found]), _TAIL)
        if record["status"] == "PENDING":
            record["position"] = pending.position(session, found.job_id)
        return record

    def page(
        self, session: Session, caller: Caller, wanted: Filter, limit: int, before: uuid.UUID | None
    ) -> tuple[orjson.Fragment, uuid.UUID | None]:
        """Short records of up to `limit` jobs, newest first, older than `before`; and from where the next page goes on.

        As JSON already: making it takes its time, too.
        """
        found, following = jobs.page(session, caller, wanted, limit, before)
        return self._brief(session, caller, found), following

    def of_batch(self, session: Session, caller: Caller, ids: Sequence[uuid.UUID]) -> orjson.Fragment:
        """Short records of these jobs as JSON. Raises `NotFound` if `caller` may not see them all."""
        return self._brief(session, caller, jobs.find_brief(session, caller, ids))

    def _brief(self, session: Session, caller: Caller, found: Sequence[Found]) -> orjson.Fragment:
        reasons = self._reasons(session, found)
        session.commit()  # the files are read without a transaction
        return _joined([_record(job, caller, self._outputs, reasons, BRIEF) for job in found])

    def _reasons(self, session: Session, found: Sequence[Found]) -> dict[uuid.UUID, Reason]:
        waiting = [job.job_id for job in found if job.status == "PENDING"]
        return pending.reasons(session, waiting, self._supply, self._max_running)

    def of_new(self, job: NewJob, caller: Caller, given: Mapping[str, float]) -> Record:
        """The record of a job that has just been stored. `given` is what it got where it asked for nothing."""
        values = vars(job)
        at, created_at = rfc3339(job.run_at), rfc3339(job.created_at)
        return {
            "id": public_id(job.name, job.id),
            "submitter_id": job.user_id,
            "submitter": caller.username,
            "status": "PENDING",
            "attempt": 0,
            "created_at": created_at,
            "modified": created_at,
            "run_at": at,
            "schedule": job.schedule_id,
            "fired_for": rfc3339(job.fired_for),
            "timeout": given["timeout"] if job.timeout is None else job.timeout,
            "limits": {name: job.limits.get(name, given[name]) for name in NAMES},
            "pinned": False,
            "notify": _targets(job.notify, job.user_id),
            "pending_reason": f"starts at {at}" if job.deferred else self._supply.waits_for,
            "code": job.code if job.upload is None else None,
            **{name: values[name] for name in _AS_ASKED},
            **dict.fromkeys(_NOT_YET),
        }

    def of_new_batch(self, new: Sequence[NewJob], caller: Caller, given: Mapping[str, float]) -> orjson.Fragment:
        """Short records of jobs that have just been stored, as JSON."""
        return _joined([_cut(self.of_new(job, caller, given)) for job in new])


def _targets(notify: Sequence[Mapping[str, Any]] | None, user_id: int) -> list[dict[str, Any]]:
    """Those of a job's targets that are its owner's own."""
    return [{"url": item["url"], "on": item["on"]} for item in notify or () if item["user_id"] == user_id]


def _record(
    found: Found, caller: Caller, outputs: OutputStore, reasons: Mapping[uuid.UUID, Reason], tail: int
) -> Record:
    row = found.row
    own = row.user_id == caller.user_id
    reason = reasons.get(row.id)
    sizes: dict[Stream, int | None] = {"stdout": row.stdout_bytes, "stderr": row.stderr_bytes}
    texts: dict[Stream, str | None] = {"stdout": None, "stderr": None}
    if found.attempt:
        for stream, size in sizes.items():
            texts[stream] = outputs.tail(row.id, found.attempt, stream, tail, size)
            if size is None:  # it still runs, or waits for its next attempt
                sizes[stream] = outputs.size(row.id, found.attempt, stream)
    return {
        "id": found.public_id,
        "name": row.name,
        "submitter_id": row.user_id,
        "submitter": row.username,
        "status": found.status,
        "reason": row.reason,
        "code": row.code if row.upload is None else None,
        "upload": row.upload and bytes(row.upload).hex(),
        "entrypoint": row.entrypoint,
        "shell": row.shell,
        "args": row.args if own or not row.parameters else None,  # among them are values of parameters
        "env": row.env if own or row.env is None else dict.fromkeys(row.env),
        "timeout": row.timeout,
        "limits": {name: row.limits.get(name) for name in NAMES},
        "network": row.network,
        "secrets": row.secrets,
        "secrets_in_env": row.secrets_in_env,
        "secret_env": row.secret_env if own or row.secret_env is None else dict.fromkeys(row.secret_env),
        "script": row.script,
        "script_version": row.script_version,
        "parameters": row.parameters if own or row.parameters is None else dict.fromkeys(row.parameters),
        "share_output": row.share_output,
        "schedule": row.schedule_id,
        "fired_for": rfc3339(row.fired_for),
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
        "artifacts": row.artifacts,
        "artifacts_bytes": row.artifacts_bytes,
        "artifacts_truncated": row.artifacts_truncated,
        "wall_seconds": row.wall_seconds,
        "cpu_seconds": row.cpu_seconds,
        "peak_memory_bytes": row.peak_memory_bytes,
        "written_bytes": row.written_bytes,
        "runner": row.runner,
        "cancelled_by": row.cancelled_by,
        "position": None,
        "pinned": row.pinned,
        "notify": _targets(row.notify, row.user_id) if own else None,
        "pending_reason": reason and (reason.to_owner if own else reason.to_others),
    }


_AS_ASKED = (
    *("name", "upload", "entrypoint", "shell", "args", "env", "network", "secrets", "secrets_in_env", "secret_env"),
    *("script", "script_version", "parameters", "share_output", "priority"),
    *("retries", "retry_delay", "on_lost"),
)
_NOT_YET = (
    *("reason", "started_at", "finished_at", "return_code", "signal"),
    *("stdout", "stderr", "stdout_bytes", "stderr_bytes", "output_truncated"),
    *("artifacts", "artifacts_bytes", "artifacts_truncated"),
    *("wall_seconds", "cpu_seconds", "peak_memory_bytes", "written_bytes", "runner", "cancelled_by", "position"),
)


def _cut(record: Record) -> Record:
    """A new job's record as short as a list shows it later."""
    record["code"] = record["code"] and record["code"][:BRIEF]
    for name in ("args", "env", "secrets", "secret_env", "parameters"):
        value = record[name]
        # PostgreSQL writes JSON just as Python does.
        if value and len(json.dumps(value, ensure_ascii=False).encode()) > BRIEF:
            record[name] = None
    return record


def _joined(records: Sequence[Record]) -> orjson.Fragment:
    """Many records as one piece of JSON. Written one by one, as other threads stand still while orjson writes."""
    return orjson.Fragment(b"[" + b",".join(map(orjson.dumps, records)) + b"]")
