"""Tables of the product.

The state of a job is *which table it stands in*: `ReadyJob` (may start), `DeferredJob` (not before a time),
`RunningJob` (claimed by a runner), or none of them and `Job.status` is set (final). `Job` is written when the job is
submitted and when it ends, never by the claim; the other three are narrow, and rows are only inserted and deleted, so
what a claim costs does not depend on how many jobs there were or wait.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ColumnElement,
    Float,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    SmallInteger,
    Text,
    Uuid,
    and_,
    exists,
    func,
    or_,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from baselayer.models import Base
from baselayer.visibility import Viewer

OVERLAPS = ("queue", "skip", "cancel_previous", "queue_latest", "parallel")
CATCH_UPS = ("none", "last", "all")
LEVELS = ("view", "run", "edit")  # of a share, each with those before it
FINAL_STATUSES = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL")
STATUSES = ("PENDING", "RUNNING", *FINAL_STATUSES)
MAX_RETRY_DELAY = 7 * 86_400.0  # seconds, however often the first delay is doubled

# Rows of the queue come and go by the thousand: vacuum them early and without pauses.
_QUEUE_STORAGE = {
    "autovacuum_vacuum_scale_factor": "0",
    "autovacuum_vacuum_threshold": "2000",
    "autovacuum_vacuum_cost_delay": "0",
}


class UserLimits(Base):
    """What a user may use; null means the configured default."""

    __tablename__ = "user_limits"

    user_id: Mapped[int] = mapped_column(ForeignKey("user.id"), primary_key=True, autoincrement=False)
    max_running: Mapped[int | None]
    max_queued: Mapped[int | None]
    jobs_per_minute: Mapped[int | None]
    #: What this user's jobs get, and may ask for at most: names of `limits.JobLimits` and ``timeout`` to numbers.
    defaults: Mapped[dict[str, float]] = mapped_column(JSONB, server_default="{}")
    maxima: Mapped[dict[str, float]] = mapped_column(JSONB, server_default="{}")
    #: Whether this user's jobs may have the network.
    network: Mapped[bool] = mapped_column(server_default="false")


class Secret(Base):
    """A secret of a user's, sealed (see `secrets`). `id` is the order in which they were made."""

    __tablename__ = "secret"

    user_id: Mapped[int] = mapped_column(ForeignKey("user.id"), primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(primary_key=True)
    id: Mapped[int] = mapped_column(Identity(always=True), unique=True)
    value: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    modified: Mapped[datetime] = mapped_column(server_default=func.now())


class Group(Base):
    """Users that scripts can be shared with by one name."""

    __tablename__ = "group"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    description: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    modified: Mapped[datetime] = mapped_column(server_default=func.now())

    @classmethod
    def visible_to(cls, viewer: Viewer) -> ColumnElement[bool]:
        """Members see their groups; administrators see all."""
        member = exists().where(GroupMember.group_id == cls.id, GroupMember.user_id == viewer.user_id)
        return or_(viewer.is_admin, member)


class GroupMember(Base):
    """That a user is in a group, and whether he manages it."""

    __tablename__ = "group_member"
    __table_args__ = (Index(None, "user_id"),)

    group_id: Mapped[int] = mapped_column(ForeignKey("group.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("user.id"), primary_key=True)
    owner: Mapped[bool] = mapped_column(server_default="false")


class Script(Base):
    """A saved, named, versioned piece of code. What it says to run stands in its versions.

    `version` is the number of the newest; `revision` counts all changes, those without a new version too. `size` is
    what its versions hold together.
    """

    __tablename__ = "script"
    __table_args__ = (
        CheckConstraint(f"overlap IN {OVERLAPS}", name="overlap"),
        CheckConstraint("(overlap = 'parallel') OR max_running IS NULL", name="max_running"),
        Index(None, "user_id", "name", unique=True),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("user.id"))
    name: Mapped[str]
    description: Mapped[str]
    overlap: Mapped[str]
    max_running: Mapped[int | None]  # at once, where they may run in parallel; null: as many as there are
    notify: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default="[]")
    version: Mapped[int]
    revision: Mapped[int] = mapped_column(server_default="1")
    size: Mapped[int] = mapped_column(BigInteger)
    turn: Mapped[int] = mapped_column(server_default="0")  # the user whose job was let in last, see admit_jobs
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    modified: Mapped[datetime] = mapped_column(server_default=func.now())
    archived_at: Mapped[datetime | None]

    @classmethod
    def visible_to(cls, viewer: Viewer) -> ColumnElement[bool]:
        """Owners see their own scripts, and those that are shared with them; administrators see all."""
        groups = select(GroupMember.group_id).where(GroupMember.user_id == viewer.user_id)
        shared = exists().where(
            ScriptShare.script_id == cls.id,
            or_(ScriptShare.user_id == viewer.user_id, ScriptShare.group_id.in_(groups)),
        )
        return or_(viewer.is_admin, cls.user_id == viewer.user_id, shared)


class Upload(Base):
    """Files that jobs are given, once for all that are given the same: see `uploads`."""

    __tablename__ = "upload"
    __table_args__ = (Index(None, "user_id", "used_at"),)

    digest: Mapped[bytes] = mapped_column(primary_key=True)
    kind: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    #: Path, size, SHA-256 and whether it begins with #! of each; null where they came as an archive.
    files: Mapped[list[list[Any]] | None] = mapped_column(JSONB(none_as_null=True))
    requirements: Mapped[list[str] | None] = mapped_column(JSONB(none_as_null=True))  # packages that they name
    user_id: Mapped[int]  # who sent it last
    used_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())  # and when


class Content(Base):
    """What a version says to run, once for all versions that say the same: addressed by its SHA-256. Never changed."""

    __tablename__ = "content"
    __table_args__ = (Index(None, "upload", postgresql_where=text("upload IS NOT NULL")),)

    digest: Mapped[bytes] = mapped_column(primary_key=True)
    code: Mapped[str]
    upload: Mapped[bytes | None] = mapped_column(ForeignKey("upload.digest"))  # in place of code,
    entrypoint: Mapped[str | None]  # with which of its files is run
    shell: Mapped[str]
    parameters: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)  # see `parameters`
    defaults: Mapped[dict[str, Any]] = mapped_column(JSONB)  # see `script_schemas.Defaults`
    size: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ScriptVersion(Base):
    """One version of a script. Never changed: who wrote it, when, and what it says."""

    __tablename__ = "script_version"
    __table_args__ = (Index(None, "digest"),)

    script_id: Mapped[int] = mapped_column(ForeignKey("script.id"), primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    digest: Mapped[bytes] = mapped_column(ForeignKey("content.digest"))
    author: Mapped[str]  # a username
    message: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class ScriptShare(Base):
    """Whom beside its owner a script may be seen, run or edited by: a user, or a group."""

    __tablename__ = "script_share"
    __table_args__ = (
        CheckConstraint(f"level IN {LEVELS}", name="level"),
        CheckConstraint("(user_id IS NULL) <> (group_id IS NULL)", name="whom"),
        Index(None, "script_id", "user_id", unique=True),
        Index(None, "script_id", "group_id", unique=True),
        Index(None, "user_id"),
        Index(None, "group_id"),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    script_id: Mapped[int] = mapped_column(ForeignKey("script.id", ondelete="CASCADE"))
    user_id: Mapped[int | None] = mapped_column(ForeignKey("user.id"))
    group_id: Mapped[int | None] = mapped_column(ForeignKey("group.id", ondelete="CASCADE"))
    level: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Schedule(Base):
    """A rule that makes jobs from a script at times; see `schedules`. No foreign key to scripts: one may be purged."""

    __tablename__ = "schedule"
    __table_args__ = (
        CheckConstraint("num_nonnulls(cron, every, at) = 1", name="times"),
        CheckConstraint(f"catch_up IN {CATCH_UPS}", name="catch_up"),
        CheckConstraint(f"overlap IN {OVERLAPS[1:4]}", name="overlap"),
        Index(None, "due_at", "id", postgresql_where=text("due_at IS NOT NULL")),
        Index(None, "user_id", "id"),
        {"postgresql_with": {"fillfactor": "50"}},
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("user.id"))
    script_id: Mapped[int]
    script: Mapped[str]  # owner/name
    version: Mapped[int | None]
    parameters: Mapped[dict[str, Any]] = mapped_column(JSONB)
    overrides: Mapped[dict[str, Any]] = mapped_column(JSONB)
    overlap: Mapped[str | None]
    cron: Mapped[str | None]
    every: Mapped[float | None] = mapped_column(Float)  # seconds
    at: Mapped[datetime | None]
    timezone: Mapped[str]
    start: Mapped[datetime | None]
    end: Mapped[datetime | None]
    jitter: Mapped[float] = mapped_column(Float)  # seconds
    catch_up: Mapped[str]
    catch_up_limit: Mapped[int]
    notify: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default="[]")
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))  # of the token that made or changed it, see `schedules`
    catching_up: Mapped[bool] = mapped_column(server_default="false")  # on with what was missed, one by one
    enabled: Mapped[bool]
    problem: Mapped[str | None]
    created_at: Mapped[datetime]
    modified: Mapped[datetime]
    instant: Mapped[datetime | None]  # for which it has not fired yet; null where there is none any more
    due_at: Mapped[datetime | None]
    last_instant: Mapped[datetime | None]
    last_job_id: Mapped[uuid.UUID | None] = mapped_column(Uuid)

    @classmethod
    def visible_to(cls, viewer: Viewer) -> ColumnElement[bool]:
        """Owners see their own schedules; administrators see all."""
        return or_(viewer.is_admin, cls.user_id == viewer.user_id)


class SubmissionCount(Base):
    """How many jobs a user submitted in a minute by the clock (`minute` since the epoch), and in the one before it.

    `queued` is no less than how many of them wait: what was counted once, and all that was submitted since. Jobs that
    start only make the truth smaller, so as long as this is below the limit nothing has to be counted.
    """

    __tablename__ = "submission_count"
    __table_args__ = ({"postgresql_with": {"fillfactor": "50"}},)

    user_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    minute: Mapped[int]
    submitted: Mapped[int]
    before: Mapped[int]
    queued: Mapped[int]


class Job(Base):
    """One requested execution of code, and the record of how it went.

    `id` is a UUID of version 7, so the order of ids is the order of submission. The job's public id is
    ``<name>_<id in 32 hex digits>``.
    """

    __tablename__ = "job"
    __table_args__ = (
        CheckConstraint("priority BETWEEN -10 AND 10", name="priority"),
        CheckConstraint("on_lost IN ('fail', 'requeue')", name="on_lost"),
        CheckConstraint(f"status IN {FINAL_STATUSES}", name="status"),
        # A job has ended exactly when it has a final status and the time of it.
        CheckConstraint("(status IS NULL) = (finished_at IS NULL)", name="final"),
        # Sizes are there for whoever adds up all that a user keeps, without reading the rows.
        Index(None, "user_id", "id", postgresql_include=["stdout_bytes", "stderr_bytes", "artifacts_bytes", "upload"]),
        Index(None, "user_id", "pinned", postgresql_where=text("pinned")),
        Index(None, "user_id", "upload", "id", postgresql_where=text("upload IS NOT NULL")),
        Index(None, "upload", postgresql_where=text("upload IS NOT NULL")),
        Index(None, "user_id", "status", "id"),
        Index(None, "user_id", "name", "id"),
        Index(None, "status", "id"),
        Index(None, "script_id", "id", postgresql_where=text("script_id IS NOT NULL")),
        Index(None, "script_id", "status", "id", postgresql_where=text("script_id IS NOT NULL")),
        # One job for each instant of a schedule, whatever else goes wrong.
        Index(None, "schedule_id", "fired_for", unique=True, postgresql_where=text("fired_for IS NOT NULL")),
    )

    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True)
    user_id: Mapped[int]  # no foreign key: users are never deleted, and checking it would lock their rows
    name: Mapped[str]
    priority: Mapped[int] = mapped_column(SmallInteger)
    code: Mapped[str]
    upload: Mapped[bytes | None] = mapped_column(ForeignKey("upload.digest"))  # in place of code,
    entrypoint: Mapped[str | None]  # with which of its files is run
    shell: Mapped[str]
    args: Mapped[list[str]] = mapped_column(JSONB)
    env: Mapped[dict[str, str]] = mapped_column(JSONB)
    stdin: Mapped[str]
    timeout: Mapped[float] = mapped_column(Float)
    limits: Mapped[dict[str, float]] = mapped_column(JSONB, server_default="{}")  # all of `limits.JobLimits`
    network: Mapped[bool] = mapped_column(server_default="false")
    secrets: Mapped[list[str]] = mapped_column(JSONB, server_default="[]")  # names
    secrets_in_env: Mapped[bool] = mapped_column(server_default="false")
    #: Names of secrets by those of the variables that hold them.
    secret_env: Mapped[dict[str, str]] = mapped_column(JSONB, server_default="{}")
    #: What it was made from, if not from a request alone; no foreign key, as a script may be purged.
    script_id: Mapped[int | None]
    script: Mapped[str | None]  # as then: owner/name
    script_version: Mapped[int | None]
    parameters: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    #: Whether the script's owner may see all of it, as its own owner can.
    share_output: Mapped[bool] = mapped_column(server_default="false")
    schedule_id: Mapped[int | None]
    fired_for: Mapped[datetime | None]  # the schedule's instant; null where it was run by hand
    run_at: Mapped[datetime | None]
    retries: Mapped[int] = mapped_column(SmallInteger)
    retry_delay: Mapped[float] = mapped_column(Float)
    on_lost: Mapped[str]
    created_at: Mapped[datetime]
    modified: Mapped[datetime]
    attempt: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    status: Mapped[str | None]
    reason: Mapped[str | None]
    return_code: Mapped[int | None]
    signal: Mapped[str | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    stdout_bytes: Mapped[int | None] = mapped_column(BigInteger)
    stderr_bytes: Mapped[int | None] = mapped_column(BigInteger)
    output_truncated: Mapped[bool | None]
    artifacts: Mapped[int | None]
    artifacts_bytes: Mapped[int | None] = mapped_column(BigInteger)
    artifacts_truncated: Mapped[bool | None]
    wall_seconds: Mapped[float | None] = mapped_column(Float)
    cpu_seconds: Mapped[float | None] = mapped_column(Float)
    peak_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    written_bytes: Mapped[int | None] = mapped_column(BigInteger)
    runner: Mapped[str | None]
    cancelled_by: Mapped[str | None]
    pinned: Mapped[bool] = mapped_column(server_default="false")  # stays however old it is
    #: Where its end is told of: url, on, and the user_id of whose target it is.
    notify: Mapped[list[dict[str, Any]] | None] = mapped_column(JSONB)

    @classmethod
    def visible_to(cls, viewer: Viewer) -> ColumnElement[bool]:
        """Owners see their own jobs, and those of their scripts that are shared with them; administrators see all."""
        own = exists().where(Script.id == cls.script_id, Script.user_id == viewer.user_id)
        return or_(viewer.is_admin, cls.user_id == viewer.user_id, and_(cls.share_output, own))


class Discarded(Base):
    """A job that was removed, whose outputs are still there."""

    __tablename__ = "discarded"

    job_id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True)
    attempt: Mapped[int] = mapped_column(SmallInteger)  # its last


class ReadyJob(Base):
    """A job that may start as soon as there is a slot."""

    __tablename__ = "ready_job"
    __table_args__ = (
        Index("ready_job_claim", "user_id", "ord", "job_id"),
        Index(None, "script_id", postgresql_where=text("script_id IS NOT NULL")),
        {"postgresql_with": _QUEUE_STORAGE},
    )

    job_id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True)
    user_id: Mapped[int]
    # Milliseconds of submission, less a minute for each point of priority: so a job that waits always comes to its
    # turn, and nothing has to be rewritten while it waits.
    ord: Mapped[int] = mapped_column(BigInteger)
    attempt: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    script_id: Mapped[int | None]


class DeferredJob(Base):
    """A job that waits for a time: its `run_at`, or its next try. One with a script waits after that for its turn.

    Then `run_at` is infinity, until admit_jobs makes it ready.
    """

    __tablename__ = "deferred_job"
    __table_args__ = (
        Index(None, "run_at", "job_id"),
        Index(None, "user_id"),
        Index(None, "script_id", "run_at", "user_id", "ord", "job_id", postgresql_where=text("script_id IS NOT NULL")),
        {"postgresql_with": _QUEUE_STORAGE},
    )

    job_id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True)
    user_id: Mapped[int]
    ord: Mapped[int] = mapped_column(BigInteger)
    run_at: Mapped[datetime]
    attempt: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    script_id: Mapped[int | None]


class RunningJob(Base):
    """A job that a runner has claimed. The primary key lets the database believe in one live attempt at most.

    `started_at` is written before the script is let go: where it is null, the script never began. `fence` is unique
    per claim, and every write about the attempt carries it, so a runner that was cut off can change nothing newer.
    """

    __tablename__ = "running_job"
    __table_args__ = (
        Index(None, "runner_id"),
        Index(None, "user_id"),
        Index(None, "script_id", postgresql_where=text("script_id IS NOT NULL")),
        {"postgresql_with": {**_QUEUE_STORAGE, "fillfactor": "70"}},
    )

    job_id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True)
    user_id: Mapped[int]
    ord: Mapped[int] = mapped_column(BigInteger)
    attempt: Mapped[int] = mapped_column(SmallInteger)
    fence: Mapped[int] = mapped_column(BigInteger, unique=True)
    runner_id: Mapped[int]
    incarnation: Mapped[uuid.UUID] = mapped_column(Uuid)
    claimed_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    started_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    cancelled_by: Mapped[str | None]
    script_id: Mapped[int | None]


class Runner(Base):
    """A runner process that is or was there. `incarnation` is new at every start; `beat` counts its heartbeats."""

    __tablename__ = "runner"
    __table_args__ = (
        CheckConstraint("state IN ('live', 'draining', 'gone')", name="state"),
        Index(None, "host", "name", unique=True),
        {"postgresql_with": {"fillfactor": "20"}},
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    host: Mapped[str]
    name: Mapped[str]
    incarnation: Mapped[uuid.UUID] = mapped_column(Uuid)
    state: Mapped[str]
    slots: Mapped[int]
    obstacle: Mapped[str | None]  # why it takes no jobs; null when all is well
    facts: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")  # see `sandbox.Facts`
    beat: Mapped[int] = mapped_column(BigInteger, server_default="0")
    beat_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())


class IdempotencyKey(Base):
    """What a submission with an Idempotency-Key made, so that the same request again makes nothing new."""

    __tablename__ = "idempotency_key"

    user_id: Mapped[int] = mapped_column(ForeignKey("user.id"), primary_key=True, autoincrement=False)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_digest: Mapped[bytes] = mapped_column(LargeBinary)
    job_ids: Mapped[list[uuid.UUID]] = mapped_column(ARRAY(Uuid))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)


class Audit(Base):
    """Who did what to which object, from where, with which token, and how it ended. Rows are only ever added.

    No foreign keys: what is told of may be gone. `username` and what is in `detail` are as they were then; without a
    `user_id` it is an operator, or nobody that is known.
    """

    __tablename__ = "audit"
    __table_args__ = (
        CheckConstraint("length(object) <= 200", name="object"),
        CheckConstraint("pg_column_size(detail) <= 4096", name="detail"),
        Index(None, "at", "id"),
        Index(None, "username", "at", "id"),
        Index(None, "object", "at", "id"),
        # Most entries are about a job that was submitted: they are found by the time alone.
        Index(None, "action", "at", "id", postgresql_where=text("action <> 'job.submit'")),
        Index(None, "outcome", "at", "id", postgresql_where=text("outcome <> 'ok'")),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    user_id: Mapped[int | None]
    username: Mapped[str | None]
    token_id: Mapped[int | None]
    address: Mapped[str | None]
    request_id: Mapped[str | None]
    action: Mapped[str]
    object: Mapped[str | None]
    outcome: Mapped[str]
    status: Mapped[int | None] = mapped_column(SmallInteger)
    detail: Mapped[dict[str, Any]] = mapped_column(JSONB)


class AuditSeal(Base):
    """A link of the chain that the audit log's entries are sealed with; see `seals`. Rows are only ever added."""

    __tablename__ = "audit_seal"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    last_id: Mapped[int] = mapped_column(BigInteger, unique=True)  # the last entry that it stands for
    entries: Mapped[int] = mapped_column(BigInteger)
    digest: Mapped[bytes]
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())


class WebhookKey(Base):
    """What signs a user's deliveries, sealed; the one before signs as well for a while."""

    __tablename__ = "webhook_key"

    user_id: Mapped[int] = mapped_column(ForeignKey("user.id"), primary_key=True, autoincrement=False)
    value: Mapped[bytes]
    previous: Mapped[bytes | None]
    replaced_at: Mapped[datetime | None]


class Delivery(Base):
    """What is told to a webhook of a job's end; see `webhooks`. Made by a trigger, where the job is ended."""

    __tablename__ = "delivery"
    __table_args__ = (
        Index(None, "job_id"),
        Index(None, "due_at", postgresql_where=text("due_at IS NOT NULL")),
        Index(None, "user_id", "due_at", postgresql_where=text("due_at IS NOT NULL")),
    )

    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True)
    job_id: Mapped[uuid.UUID] = mapped_column(Uuid)
    user_id: Mapped[int]  # whose target it is
    url: Mapped[str]
    status: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    due_at: Mapped[datetime | None]  # when it is tried next; null when that is over
    attempts: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    answer: Mapped[int | None] = mapped_column(SmallInteger)
    problem: Mapped[str | None]
    delivered_at: Mapped[datetime | None]
