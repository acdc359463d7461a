"""Submissions: how jobs come into the queue, and how many of them a user may have there."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import orjson
import uuid_utils.compat
from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from baselayer.errors import (
    ApiError,
    Conflict,
    FieldErrors,
    IdempotencyMismatch,
    InvalidRequest,
    LimitReached,
    NotAllowed,
)
from baselayer.query import Query, Rows, as_uuids
from shell_service.audit import Entry
from shell_service.jobs import public_id
from shell_service.limits import Bounds, shown
from shell_service.settings import Settings

_USER_LOCK = 7200  # first key of the advisory lock that serialises what one user's submissions are counted against
_QUEUE_SECONDS = 10  # after which a user with a full queue may ask again


class Inactive(NotAllowed):
    """This user is not active."""

    code = "inactive"


class Archived(Conflict):
    """The script is archived, and cannot be run."""

    code = "archived"


class Overlaps(Conflict):
    """Another job of the script has not ended, and the script says that then no other begins."""

    code = "overlap"

    def __init__(self, script: str = "", job_id: uuid.UUID | None = None) -> None:
        """`job_id` is that of the other job."""
        super().__init__(f"A job of the script {script} has not ended yet, and it is to be skipped then.")
        self.job_id = job_id


@dataclass(frozen=True)
class NewJob:
    """A job to be stored, checked and complete."""

    id: uuid.UUID
    user_id: int
    name: str
    priority: int
    code: str
    shell: str
    args: list[str]
    env: dict[str, str]
    stdin: str
    timeout: float | None  # None: what its owner's jobs get
    limits: dict[str, float]  # those asked for; for the others the same
    network: bool
    secrets: list[str]
    secrets_in_env: bool
    run_at: datetime | None
    retries: int
    retry_delay: float
    on_lost: str
    created_at: datetime
    deferred: bool
    secret_env: dict[str, str] = field(default_factory=dict)  # names of secrets by those of variables
    upload: str | None = None  # the digest of files that it is given, in place of code,
    entrypoint: str | None = None  # with which of them is run
    script_id: int | None = None  # what it runs, if that is saved
    script: str | None = None  # owner/name
    script_version: int | None = None
    parameters: dict[str, Any] | None = None
    share_output: bool = False  # with the script's owner
    schedule_id: int | None = None  # that made it
    fired_for: datetime | None = None  # the instant for which that was
    notify: list[dict[str, Any]] | None = None  # see `targets`
    held_until: datetime | None = None  # before which it is not let in, as one of many; only what runs a script is

    @property
    def all_secrets(self) -> set[str]:
        """Names of all secrets that it is given."""
        return {*self.secrets, *self.secret_env.values()}

    @property
    def size(self) -> int:
        """Characters to store, near enough: 500 for all that is short."""
        env = sum(map(len, self.env.values())) + sum(map(len, self.env))
        return 500 + len(self.code) + len(self.stdin) + sum(map(len, self.args)) + env

    @property
    def public_id(self) -> str:
        """The id that users see."""
        return public_id(self.name, self.id)

    @property
    def asked(self) -> dict[str, float]:
        """The limits that it asks for, its timeout included."""
        return self.limits if self.timeout is None else {"timeout": self.timeout, **self.limits}

    @property
    def ord(self) -> int:
        """Its place among its owner's jobs: milliseconds of submission, less a minute per point of priority."""
        return int(self.created_at.timestamp() * 1000) - self.priority * 60_000


def targets(user_id: int, wanted: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Targets of a user's (see `webhook_schemas.Target`) as jobs have them: with whose they are."""
    return [{**target, "user_id": user_id} for target in wanted]


def new_job(user_id: int, request: Mapping[str, Any], notify: Sequence[dict[str, Any]] = (), **origin: Any) -> NewJob:
    """A job from a checked request (see `schemas.JobRequest`). Its id holds the time of submission.

    `notify` are targets beside those of the request, `origin` is what tells of the script that it runs.
    """
    job_id = uuid_utils.compat.uuid7()
    created = datetime.fromtimestamp((job_id.int >> 80) / 1000, UTC)
    run_at = request["run_at"]
    if request["delay"] is not None:
        run_at = created + timedelta(seconds=request["delay"])
    return NewJob(
        id=job_id,
        user_id=user_id,
        name=request["name"],
        priority=request["priority"],
        code=request["code"],
        upload=request["upload"],
        entrypoint=request["entrypoint"],
        shell=request["shell"],
        args=request["args"],
        env=request["env"],
        stdin=request["stdin"],
        timeout=request["timeout"],
        limits=request["limits"],
        network=request["network"],
        secrets=request["secrets"],
        secrets_in_env=request["secrets_in_env"],
        run_at=run_at,
        retries=request["retries"],
        retry_delay=request["retry_delay"],
        on_lost=request["on_lost"],
        created_at=created,
        deferred=run_at is not None and run_at > created,
        secret_env=request["secret_env"],
        notify=[*targets(user_id, request["notify"]), *notify] or None,
        **origin,
    )


def request_again(row: Row[Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The request that made this job, to make another like it; what was to happen at a time happens at once.

    The limits are asked for that the job had. `changes` are as in `schemas.RerunRequest`.
    """
    names = "name priority code entrypoint shell args env stdin timeout network secrets secrets_in_env secret_env"
    return {
        **{name: getattr(row, name) for name in f"{names} retries retry_delay on_lost".split()},
        "upload": row.upload and row.upload.hex(),
        "run_at": None,
        "delay": None,
        "notify": [],
        **changes,
        "limits": {**row.limits, **changes.get("limits", {})},
    }


def origin_of(row: Row[Any]) -> dict[str, Any]:
    """Which script a job runs, and who is told of its end, for `new_job`."""
    names = ("script_id", "script", "script_version", "parameters", "share_output")
    return {**{name: getattr(row, name) for name in names}, "notify": row.notify or []}


@dataclass(frozen=True)
class Submission:
    """Jobs that one request wants stored: all or none of them. `audit` is written when they are."""

    user_id: int
    jobs: Sequence[NewJob]
    key: str | None = None
    digest: bytes = b""
    audit: Entry | None = None
    batch: bool = False  # whether what is wrong is told by the job's index
    overlap: str | None = None  # what is done about other jobs of the script that the one job runs, if not as it says

    @property
    def size(self) -> int:
        """Characters to store, near enough."""
        return sum(job.size for job in self.jobs)

    @property
    def asks(self) -> dict[str, Any]:
        """What of it not everybody may have, for submit_jobs; mostly nothing."""
        limits: dict[str, float] = {}
        secrets: set[str] = set()
        network = False
        for job in self.jobs:
            for name, value in job.asked.items():
                limits[name] = max(value, limits.get(name, 0))
            secrets.update(job.all_secrets)
            network = network or job.network
        if not (limits or secrets or network):
            return {}
        return {"asks": True, "limits": limits, "secrets": sorted(secrets), "network": network}

    @property
    def script(self) -> dict[str, Any]:
        """Which script it runs, for submit_jobs; mostly none."""
        (first, *_) = self.jobs
        if first.script_id is None:
            return {}
        return {"script": first.script_id, "overlap": self.overlap, "later": first.deferred}

    def errors(self, problem: Callable[[NewJob], FieldErrors]) -> FieldErrors:
        """What is wrong with each job, as an answer tells it."""
        if not self.batch:
            return problem(self.jobs[0])
        return {"jobs": {n: found for n, job in enumerate(self.jobs) if (found := problem(job))}}


@dataclass(frozen=True)
class Stored:
    """What a submission made: the ids of its jobs, and what those got, by `limits.WITH_TIMEOUT`, that did not ask."""

    ids: list[uuid.UUID]
    limits: Mapping[str, float]


@dataclass(frozen=True)
class Limits:
    """What a user may use; also the defaults of users who have no limits of their own."""

    max_running: int
    max_queued: int
    jobs_per_minute: int
    job: Bounds


def default_limits(settings: Settings) -> Limits:
    """The limits of users who have none of their own."""
    users = settings.users
    return Limits(users.max_running, users.max_queued, users.jobs_per_minute, settings.limits.bounds)


@dataclass(frozen=True)
class Known:
    """What a request with an Idempotency-Key asked for, and the jobs that it made."""

    digest: bytes
    ids: list[uuid.UUID]


def known(user_id: int, key: str) -> Query[Known | None]:
    """What this key of the user's stands for, if anything."""
    return Query(
        "SELECT request_digest, job_ids FROM idempotency_key WHERE user_id = %(user)s AND key = %(key)s",
        {"user": user_id, "key": key},
        lambda rows: Known(bytes(rows[0][0]), as_uuids(rows[0][1])) if rows else None,
    )


def submit(submissions: Sequence[Submission], defaults: Limits) -> Query[list[Stored | Exception]]:
    """Store what is asked for; gives, for each submission, what it made or why it was refused.

    A submission with an Idempotency-Key seen before gets the ids of then, or `IdempotencyMismatch`.
    """
    asked = [
        {
            "n": n,
            "user_id": item.user_id,
            "jobs": len(item.jobs),
            "key": item.key,
            "digest": item.digest.hex(),
            "ids": None if item.key is None else [job.id for job in item.jobs],
            "audit": item.audit,
            **item.asks,
            **item.script,
        }
        for n, item in enumerate(submissions)
    ]
    jobs = [
        # What is not said need not be parsed either: of most jobs that is a third of their fields.
        {"n": n, "ord": job.ord, **{name: value for name, value in vars(job).items() if value is not None}}
        for n, item in enumerate(submissions)
        for job in item.jobs
    ]
    # JSON, whatever the number of rows: the statement is constant, and it is what both sides parse fastest.
    return Query(
        "SELECT n, outcome, allowed, counted, seconds, ids, detail FROM submit_jobs("
        "%(submissions)s, %(jobs)s, %(max_queued)s, %(jobs_per_minute)s, %(defaults)s, %(maxima)s,"
        " CAST(%(scripts)s AS int[]))",
        {
            "submissions": orjson.dumps(asked).decode(),
            "jobs": orjson.dumps(jobs).decode(),
            "max_queued": defaults.max_queued,
            "jobs_per_minute": defaults.jobs_per_minute,
            "defaults": orjson.dumps(defaults.job.defaults).decode(),
            "maxima": orjson.dumps(defaults.job.maxima).decode(),
            "scripts": sorted({item.jobs[0].script_id for item in submissions if item.jobs[0].script_id is not None}),
        },
        partial(_results, submissions, defaults.job.defaults),
    )


def _results(submissions: Sequence[Submission], defaults: Mapping[str, float], rows: Rows) -> list[Stored | Exception]:
    results: list[Stored | Exception] = [Stored([job.id for job in item.jobs], defaults) for item in submissions]
    for n, outcome, allowed, counted, seconds, ids, detail in rows:
        if outcome == "known":
            results[n] = Stored(as_uuids(ids), defaults)
        elif outcome == "stored":
            results[n] = Stored([job.id for job in submissions[n].jobs], detail)
        elif outcome == "overlap":
            results[n] = Overlaps(submissions[n].jobs[0].script or "", as_uuids(ids)[0])
        elif outcome == "archived":
            results[n] = Archived(f"The script {submissions[n].jobs[0].script} is archived and cannot be run.")
        elif outcome == "crowd":
            results[n] = Conflict(
                f"More than {counted} jobs of the script {submissions[n].jobs[0].script} have not ended: too many to be"
                " cancelled for another one. Cancel them with POST /api/jobs/cancel, or run it another way."
            )
        elif outcome in ("network", "unreachable", "invalid"):
            results[n] = _not_for_everybody(outcome, submissions[n], detail)
        else:
            results[n] = _refusal(outcome, len(submissions[n].jobs), allowed, counted, seconds)
    return results


def _refusal(outcome: str, jobs: int, allowed: int, counted: int, seconds: int | None) -> ApiError:
    if outcome == "mismatch":
        return IdempotencyMismatch()
    if outcome == "inactive":
        return Inactive()
    may = f"You may have {allowed} jobs queued" if outcome == "queued" else f"You may submit {allowed} jobs a minute"
    if jobs > max(allowed, 1):  # waiting would not help
        return InvalidRequest(f"{may}; these are {jobs}.")
    if outcome == "queued":
        return LimitReached(f"{may}; {counted} are.", retry_after=_QUEUE_SECONDS)
    return LimitReached(f"{may}; you did {counted}.", retry_after=seconds or 1)


# -- what not everybody may have -------------------------------------------------------------------------------------


def require_scopes(submission: Submission, scopes: Collection[str]) -> None:
    """Raise `NotAllowed` where jobs need what a token of these scopes is not good for."""
    for scope, what in (("jobs:network", "network"), ("secrets:use", "secrets"), ("secrets:use", "secret_env")):
        if scope not in scopes and any(getattr(job, what) for job in submission.jobs):
            raise _about(NotAllowed, submission, what, f"The token lacks the scope {scope}; use one that has it.")


def _not_for_everybody(outcome: str, submission: Submission, detail: Any) -> ApiError:
    if outcome == "network":
        problem = "You may not give jobs the network; an administrator can allow it (limits.network of a user)."
        return _about(NotAllowed, submission, "network", problem)
    if outcome == "unreachable":
        problem = f"No runner can give jobs the network: {detail}. The service's operator can change that."
        return _about(Conflict, submission, "network", problem)
    return InvalidRequest.of(submission.errors(partial(_problems, detail.get("limits", {}), detail.get("secrets", ()))))


def _about(kind: type[ApiError], submission: Submission, what: str, problem: str) -> ApiError:
    errors = submission.errors(lambda job: {what: [problem]} if getattr(job, what) else {})
    return kind(f"jobs.{next(iter(errors['jobs']))}: {problem}" if submission.batch else problem, errors)


def _problems(maxima: Mapping[str, float], missing: Sequence[str], job: NewJob) -> FieldErrors:
    """What is wrong with a job, where these maxima hold and these secrets are not there."""
    errors: FieldErrors = {}
    for name, value in job.asked.items():
        if name in maxima and value > maxima[name]:
            bounds = f"at most {shown(name, maxima[name])}, not {shown(name, value)}"
            problem = f"Must be {bounds}; an administrator can allow you more."
            where = errors if name == "timeout" else errors.setdefault("limits", {})
            where[name] = [problem]
    if unknown := [name for name in job.secrets if name in missing]:
        errors["secrets"] = [_no_secret(name) for name in unknown]
    for variable, name in job.secret_env.items():
        if name in missing:
            asked_by = [parameter for parameter, value in (job.parameters or {}).items() if value == name]
            where = errors.setdefault("parameters" if asked_by else "secret_env", {})
            where.update({place: [_no_secret(name)] for place in asked_by or [variable]})
    return errors


def _no_secret(name: str) -> str:
    return f"You have no secret {name}; PUT /api/secrets/{name} makes it."


def lock_user(session: Session, user_id: int) -> None:
    """Wait until no submission of this user is under way, and let none begin before the end of this transaction."""
    session.execute(text("SELECT pg_advisory_xact_lock(:key, :user)"), {"key": _USER_LOCK, "user": user_id})
