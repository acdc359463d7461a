"""What requests may say, and what answers hold: checks and the API document come from here.

Those about users, their tokens and secrets are in `user_schemas`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from marshmallow import Schema, ValidationError, fields, missing, post_load, validate, validates_schema
from marshmallow.experimental.context import Context

from baselayer.fields import Flag, Instant, Items, Number, Pairs, Request, Size, Text, Whole, about
from shell_service import webhook_schemas
from shell_service.limits import LEAST
from shell_service.models import STATUSES
from shell_service.settings import Jobs
from shell_service.shells import AUTO
from shell_service.uploads import MAX_FILES

NAME = "[A-Za-z0-9._-]+"
VARIABLE = "[A-Za-z_][A-Za-z0-9_]{0,63}"
MAX_SECRETS = 50  # of a job
MOST = 2**53  # of any limit: beyond it JSON's numbers are not exact
DAY = 86_400
CENTURY = 100 * 366 * DAY


@dataclass(frozen=True)
class JobRules:
    """What job requests are checked against: configured limits, interpreters that there are, and the request itself."""

    jobs: Jobs
    shells: Mapping[str, str]
    #: Whether files have come with it, as parts of a form.
    files_sent: bool = False


def _rules() -> JobRules:
    rules: JobRules = Context.get()
    return rules


class Code(fields.Field[str]):
    """A script: text, or a list of lines."""

    json_schema = {
        "oneOf": [
            {"type": "string", "minLength": 1, "pattern": r"^[^\u0000]*$"},
            {"type": "array", "minItems": 1, "items": {"type": "string", "pattern": r"^[^\u0000]*$"}},
        ]
    }

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        if isinstance(value, list) and all(isinstance(line, str) for line in value):
            value = "\n".join(value) + "\n" if value else ""
        if not isinstance(value, str):
            raise ValidationError("Must be text, or a list of lines.")
        if not value:
            raise ValidationError("Must not be empty.")
        if "\0" in value:
            raise ValidationError("Must not contain a NUL character.")
        most = _rules().jobs.max_code
        if len(value) > most or len(value.encode()) > most:
            raise ValidationError(f"Must be at most {most} bytes.")
        return value


class Script(Request):
    """What is to be run."""

    code = Code(
        required=True, metadata=about("The script: text, or a list of lines.", "for i in 1 2 3; do echo $i; done")
    )
    name = Text(low=1, high=100, pattern=NAME, load_default="job", metadata=about("First part of the job's id.", "hi"))
    shell = Text(load_default="sh", metadata=about("The interpreter: one of those that GET /api/shells lists.", "sh"))
    args = Items(Text(), high=1000, load_default=list, metadata=about("Positional arguments.", ["a"]))
    env = Pairs(
        Text(pattern=VARIABLE),
        Text(),
        high=1000,
        load_default=dict,
        metadata=about("Environment variables.", {"GREETING": "hello"}),
    )
    stdin = Text(load_default="", metadata=about("What the script reads from its standard input."))


class JobLimitsRequest(Request):
    """What a job may use, all of its processes together."""

    memory = Size(
        low=int(LEAST["memory"]),
        high=MOST,
        metadata=about("Bytes of memory, files in /job, /tmp and /dev/shm included.", "256MiB"),
    )
    processes = Whole(low=int(LEAST["processes"]), high=MOST, metadata=about("Processes and threads at once.", 64))
    cpu = Number(low=LEAST["cpu"], high=MOST, metadata=about("Processors' worth of computing time.", 0.5))
    cpu_seconds = Number(low=LEAST["cpu_seconds"], high=MOST, metadata=about("Seconds of processor time.", 600))
    open_files = Whole(
        low=int(LEAST["open_files"]), high=MOST, metadata=about("Open files, of each process by itself.", 256)
    )
    file_size = Size(low=0, high=MOST, metadata=about("Bytes of the largest file.", "1GiB"))
    disk = Size(low=int(LEAST["disk"]), high=MOST, metadata=about("Bytes of its home, /job.", "100MiB"))
    output = Size(low=0, high=MOST, metadata=about("Bytes kept of each of its two streams.", "10MiB"))
    artifacts = Size(low=0, high=MOST, metadata=about("Bytes kept of what it leaves in /job/artifacts.", "100MiB"))


class Needs(Request):
    """What a job needs to run."""

    timeout = Number(
        low=0,
        high=MOST,
        closed=False,
        allow_none=True,
        metadata=about("Seconds that the script may run; at the limit it is ended, and the job is TIMEOUT.", 60),
    )
    limits = fields.Nested(JobLimitsRequest, metadata=about("What it may use; what is not named has its default."))
    network = Flag(
        metadata=about(
            "Whether it can reach the internet; an administrator must have allowed it to you, and the token needs the"
            " scope `jobs:network`."
        )
    )
    secrets = Items(
        Text(pattern=VARIABLE),
        high=MAX_SECRETS,
        unique=True,
        metadata=about(
            "Names of secrets of yours that it finds in files of these names in /run/job/secrets; the token needs the"
            " scope `secrets:use`."
        ),
    )
    secrets_in_env = Flag(metadata=about("Whether they are environment variables, too."))
    secret_env = Pairs(
        Text(pattern=VARIABLE),
        Text(pattern=VARIABLE),
        high=MAX_SECRETS,
        metadata=about(
            "Environment variables that hold secrets of yours, by the names of those; the token needs the scope"
            " `secrets:use`.",
            {"TOKEN": "API_KEY"},
        ),
    )


class RerunRequest(Needs):
    """What is to be another way than it was; of `limits` those that are named."""


class JobRequest(Needs, Script):  # the fields of the last come first
    """A job to be run."""

    priority = Whole(
        low=-10, high=10, load_default=0, metadata=about("Order among your own jobs only; higher starts earlier.", 0)
    )
    run_at = Instant(load_default=None, metadata=about("Start no earlier than this.", "2030-01-31T12:00:00Z"))
    delay = Number(low=0, high=CENTURY, load_default=None, metadata=about("Start no earlier than in so many seconds."))
    retries = Whole(
        low=0, high=1000, load_default=0, metadata=about("How often to try again when it ends FAILED or TIMEOUT.", 0)
    )
    retry_delay = Number(
        low=0, high=CENTURY, load_default=1.0, metadata=about("Seconds before the first retry; doubled each time.", 1)
    )
    notify = webhook_schemas.targets("Where to tell of its end.", load_default=list)
    on_lost = fields.String(
        load_default="fail",
        validate=validate.OneOf(["fail", "requeue"]),
        metadata=about("When the runner goes away while it runs: end NODE_FAIL, or run it again.", "fail"),
    )

    @validates_schema(skip_on_field_errors=False)
    def _within_limits(self, data: dict[str, Any], **kwargs: Any) -> None:
        rules, problems = _rules(), {}
        jobs = rules.jobs
        if (shell := data.get("shell")) is not None and shell not in rules.shells:
            problems["shell"] = [f"Must be one of: {', '.join(rules.shells)}."]
        for name, most in (
            ("retries", jobs.max_retries),
            ("retry_delay", jobs.max_retry_delay),
            ("delay", jobs.max_delay),
        ):
            if (data.get(name) or 0) > most:
                problems[name] = [f"Must be at most {most:.10g}; the service's operator sets this limit."]
        if (run_at := data.get("run_at")) is not None:
            if (run_at - datetime.now(UTC)).total_seconds() > jobs.max_delay:
                problems["run_at"] = [f"Must be at most {jobs.max_delay:.0f} seconds from now."]
            if data.get("delay") is not None:
                problems["delay"] = ["Give either run_at or delay."]
        problems |= input_problems(data, jobs) | secrets_problems(data)
        if problems:
            raise ValidationError(problems)

    @post_load
    def _complete(self, data: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {**_unnamed(), **data}


def plain_request() -> dict[str, Any]:
    """A job request that names nothing but its code, which has to be added."""
    given = {name: value() if callable(value) else value for name, value in _defaults().items()}
    return {**_unnamed(), **given}


@functools.cache
def _defaults() -> dict[str, Any]:
    """What a job request gets that does not name it, or what makes that, by field."""
    defaults = {name: field.load_default for name, field in JobRequest._declared_fields.items()}
    return {name: value for name, value in defaults.items() if value is not missing}


def _unnamed() -> dict[str, Any]:
    return {
        "timeout": None,
        "limits": {},
        "network": False,
        "secrets": [],
        "secrets_in_env": False,
        "secret_env": {},
        "upload": None,
        "entrypoint": None,
    }


def input_problems(data: Mapping[str, Any], jobs: Jobs) -> dict[str, list[str]]:
    """What is too long of what a job is given, by field."""
    texts = [*data.get("args", []), *data.get("env", {}).values(), data.get("stdin", "")]
    problems = {}
    if sum(len(item.encode()) for item in texts) > jobs.max_input:
        problems["stdin"] = [f"args, env and stdin together must be at most {jobs.max_input} bytes."]
    # Linux takes no single argument or variable of 128 KiB or more (MAX_ARG_STRLEN).
    if any(len(item.encode()) >= 128 * 1024 - 128 for item in texts[:-1]):
        problems["args"] = ["A single argument or variable must be shorter than 128 KiB."]
    return problems


def secrets_problems(data: Mapping[str, Any]) -> dict[str, list[str]]:
    """What is wrong with the secrets that a job names, by field."""
    env, secret_env = data.get("env", {}).keys(), data.get("secret_env", {}).keys()
    secrets = set(data.get("secrets", ())) if data.get("secrets_in_env") else set()
    problems = {}
    for field, both, where in (
        ("secrets", secrets & env, "env"),
        ("secrets", secrets & secret_env, "secret_env"),
        ("secret_env", secret_env & env, "env"),
    ):
        if both:
            problems[field] = [f"{min(both)} is a variable in {where} already."]
    return problems


class GivenFiles(Request):
    """Files in place of code, which stands in a field of that name beside these."""

    NEEDED = True  # one of both

    files = Pairs(
        Text(low=1, high=255),
        Text(),
        high=MAX_FILES,
        metadata=about(
            "Files that it is given in its home, in place of code, by their paths. Large ones, others than text, and"
            " archives come as a form instead.",
            {"main.py": "import words\nprint(words.HELLO)", "words.py": "HELLO = 'hi'"},
        ),
    )
    entrypoint = Text(
        low=1,
        high=255,
        metadata=about(
            "Which of the files is run: as its `#!` line says, else with `python` if it ends in .py and `sh` if it ends"
            " in .sh, unless `shell` is given.",
            "main.py",
        ),
    )

    @validates_schema(skip_on_field_errors=False, pass_original=True)
    def _has_code_or_files(self, data: dict[str, Any], given: Mapping[str, Any], **kwargs: Any) -> None:
        if problems := _files_problems(given, self.NEEDED):  # what is not valid by itself is given, too
            raise ValidationError(problems)


def _files_problems(data: Mapping[str, Any], needed: bool) -> dict[str, list[str]]:
    """What is wrong with what there is to be run, by field; `needed`: there must be something."""
    both = _rules().files_sent + ("files" in data)
    if both > 1:
        return {"files": ["Come either as parts of a form, or here."]}
    if both and "code" in data:
        return {"code": ["Give either code or files."]}
    if "files" in data and not data["files"]:
        return {"files": ["Must not be empty."]}
    if both and needed and "entrypoint" not in data:
        return {"entrypoint": ["Must name one of the files."]}
    if not both and "code" in data and "entrypoint" in data:
        return {"entrypoint": ["Belongs to files only."]}
    if needed and not both and "code" not in data:
        return {"code": ["Missing data for required field."]}
    return {}


def shell_of(data: Mapping[str, Any]) -> str:
    """The interpreter of what is to be run, where none need be named."""
    plain = "sh" if "code" in data else AUTO
    return data.get("shell") or plain


class SubmitRequest(GivenFiles, JobRequest):
    """A job to be run: code, or files of which one is run."""

    code = Code(metadata=JobRequest._declared_fields["code"].metadata)
    shell = Text(metadata=JobRequest._declared_fields["shell"].metadata)

    @post_load
    def _complete(self, data: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {**_unnamed(), "code": "", **data, "shell": shell_of(data)}


class BatchRequest(Request):
    """Jobs that are stored all together, or not at all."""

    jobs = Items(
        fields.Nested(JobRequest),
        low=1,
        high=1000,
        required=True,
        metadata=about("The jobs, each as `POST /api/jobs` takes it."),
    )


class WaitQuery(Schema):
    """Whether to wait for the job's end."""

    wait = Number(
        low=0,
        high=300,
        load_default=None,
        metadata=about("Seconds to wait for the job's end before answering with its state of then.", 10),
    )


class Filters(Request):
    """Which jobs are meant."""

    status = fields.String(
        load_default=None, validate=validate.OneOf(STATUSES), metadata=about("Only these.", "FAILED")
    )
    name = Text(low=1, high=100, pattern=NAME, load_default=None, metadata=about("Only jobs of this name."))
    submitter = Text(low=1, high=100, load_default=None, metadata=about("Only jobs of this user (administrators)."))
    created_after = Instant(load_default=None, metadata=about("Only jobs submitted after this time."))
    created_before = Instant(load_default=None, metadata=about("Only jobs submitted before this time."))


class PageQuery(Schema):
    """How many at once."""

    limit = Whole(low=1, high=1000, load_default=100, metadata=about("How many at the most.", 100))
    cursor = Text(low=1, high=100, load_default=None, metadata=about("From the `Link` header of the page before."))


class ListQuery(Filters, PageQuery):
    """Which jobs are meant, and how many at once."""


class FollowQuery(Schema):
    """How to send output."""

    follow = Flag(load_default=False, metadata=about("Keep sending what the job prints until it ends."))


def nullable(kind: type[fields.Field[Any]], text: str, **kwargs: Any) -> fields.Field[Any]:
    return kind(allow_none=True, metadata=about(text), **kwargs)


class JobLimits(Schema):
    """What a job may use."""

    memory = fields.Integer(metadata=about("Bytes of memory, files in /job, /tmp and /dev/shm included."))
    processes = fields.Integer(metadata=about("Processes and threads at once."))
    cpu = fields.Float(metadata=about("Processors' worth of computing time."))
    cpu_seconds = fields.Float(metadata=about("Seconds of processor time."))
    open_files = fields.Integer(metadata=about("Open files, of each process by itself."))
    file_size = fields.Integer(metadata=about("Bytes of the largest file."))
    disk = fields.Integer(metadata=about("Bytes of its home, /job."))
    output = fields.Integer(metadata=about("Bytes kept of each of its two streams."))
    artifacts = nullable(fields.Integer, "Bytes kept of what it leaves in /job/artifacts; null in very old records.")


class JobRecord(Schema):
    """A job, and how it went.

    In lists and in answers to batches, what could be long is short or left out, so that an answer about a thousand
    jobs stays small.
    """

    id = fields.String(metadata=about("Its id: the name, and 32 hex digits."))
    name = fields.String(metadata=about("What its owner calls it."))
    submitter_id = fields.Integer(metadata=about("Its owner's number."))
    submitter = fields.String(metadata=about("Its owner's username."))
    status = fields.String(
        validate=validate.OneOf(STATUSES), metadata=about("PENDING, RUNNING, or how it ended: then it never changes.")
    )
    reason = nullable(fields.String, "How it ended, as a sentence.")
    code = nullable(fields.String, "The script; its first 1,024 characters in lists. Null where it was given files.")
    upload = nullable(fields.String, "The SHA-256 of the files that it was given, in hex.")
    entrypoint = nullable(fields.String, "Which of them is run.")
    shell = fields.String(
        metadata=about("The interpreter; `auto`: the entrypoint's `#!` line, or its ending, says which.")
    )
    args = fields.List(
        fields.String(),
        allow_none=True,
        metadata=about(
            "Positional arguments; null in lists where they take more than 1,024 bytes of JSON, and for others than the"
            " owner where a script's parameters are among them."
        ),
    )
    env = fields.Dict(
        keys=fields.String(),
        values=fields.String(allow_none=True),
        allow_none=True,
        metadata=about("Values are shown to the owner only. Null in lists as `args` are."),
    )
    timeout = fields.Float(metadata=about("Seconds that the script may run."))
    limits = fields.Nested(JobLimits, metadata=about("What it may use, all of its processes together."))
    network = fields.Boolean(metadata=about("Whether it can reach the internet."))
    secrets = fields.List(
        fields.String(),
        allow_none=True,
        metadata=about("Names of the secrets that it is given. Null in lists as `args` are."),
    )
    secrets_in_env = fields.Boolean(metadata=about("Whether they are environment variables, too."))
    secret_env = fields.Dict(
        keys=fields.String(),
        values=fields.String(),
        allow_none=True,
        metadata=about("Names of secrets by the variables that hold them. Null in lists as `args` are."),
    )
    script = nullable(fields.String, "The script that it runs, as `owner/name`; null where it was submitted as code.")
    script_version = nullable(fields.Integer, "The version of that.")
    parameters = fields.Dict(
        keys=fields.String(),
        allow_none=True,
        metadata=about("The script's parameters. Values are shown to the owner only. Null in lists as `args` are."),
    )
    share_output = fields.Boolean(metadata=about("Whether the script's owner may see it as well."))
    schedule = nullable(fields.Integer, "The number of the schedule that made it.")
    fired_for = nullable(Instant, "The instant for which the schedule made it; null where it was let run by hand.")
    priority = fields.Integer(metadata=about("Order among its owner's jobs."))
    retries = fields.Integer(metadata=about("How often it is tried again when it ends FAILED or TIMEOUT."))
    retry_delay = fields.Float(metadata=about("Seconds before the first retry; doubled each time."))
    on_lost = fields.String(metadata=about("What happens when its runner goes away: `fail` or `requeue`."))
    attempt = fields.Integer(metadata=about("The attempt that this record tells of; 0 before the first."))
    created_at = Instant(metadata=about("When it was submitted."))
    modified = Instant(metadata=about("When its record last changed."))
    run_at = nullable(Instant, "Not started before.")
    started_at = nullable(Instant, "When its script began.")
    finished_at = nullable(Instant, "When it reached its final status.")
    return_code = nullable(fields.Integer, "Exit code; null when a signal ended it.")
    signal = nullable(fields.String, "Name of the signal that ended it.")
    stdout = nullable(fields.String, "The last 64 KiB as text (1 KiB in lists); null before its first attempt.")
    stderr = nullable(fields.String, "The same of standard error.")
    stdout_bytes = nullable(fields.Integer, "Bytes kept of standard output.")
    stderr_bytes = nullable(fields.Integer, "Bytes kept of standard error.")
    output_truncated = nullable(fields.Boolean, "Whether more was printed than is kept.")
    artifacts = nullable(fields.Integer, "Files kept of what it left in /job/artifacts.")
    artifacts_bytes = nullable(
        fields.Integer, "Bytes that they take as they are kept: up to a kibibyte more for each file."
    )
    artifacts_truncated = nullable(
        fields.Boolean, "Whether it left more than is kept: too much, too many, or what is no plain file."
    )
    wall_seconds = nullable(fields.Float, "How long the script ran.")
    cpu_seconds = nullable(fields.Float, "Processor time of all its processes.")
    peak_memory_bytes = nullable(fields.Integer, "The most memory that its processes held at once.")
    written_bytes = nullable(fields.Integer, "Bytes that its processes wrote, to files and to pipes.")
    runner = nullable(fields.String, "The runner that ran it.")
    cancelled_by = nullable(fields.String, "Who cancelled it.")
    notify = fields.List(
        fields.Nested(webhook_schemas.TargetRecord),
        allow_none=True,
        metadata=about("Where its owner lets it be told of; null for others."),
    )
    pinned = fields.Boolean(metadata=about("Whether it stays however old it is."))
    position = nullable(fields.Integer, "Its place among what can start next; null in lists, new jobs and far back.")
    pending_reason = nullable(
        fields.String, "What a pending job waits for. Of a new job it is not looked up what else its owner runs."
    )


class ArtifactRecord(Schema):
    """A file that a job left to be kept."""

    path = fields.String(metadata=about("Its path below /job/artifacts, and at the end of its address."))
    size = fields.Integer(metadata=about("Bytes."))
    modified = Instant(metadata=about("When it was last written, to the second."))
    executable = fields.Boolean(metadata=about("Whether it may be run."))


class Cancelled(Schema):
    """How many jobs a cancel was about."""

    cancelled = fields.Integer(metadata=about("Jobs that have ended, or are being ended."))


class ShellRecord(Schema):
    """An interpreter that jobs can name."""

    name = fields.String(metadata=about("What jobs give as `shell`."))
    path = fields.String(metadata=about("Where it is inside the sandbox."))


class RunnerFacts(Schema):
    """A runner, and what holds for the jobs that it runs."""

    host = fields.String(metadata=about("The name of its host."))
    name = fields.String(metadata=about("Its name on its host."))
    state = fields.String(metadata=about("`live`, or `draining` before it stops."))
    obstacle = nullable(fields.String, "Why it takes no jobs; null when it does.")
    sandbox = nullable(fields.String, "`walls`, or `none`: jobs can do all that the service can.")
    uids = nullable(
        fields.String,
        "Whether each user's jobs have a uid of their own: `own`, `subordinate` (of the range that an ordinary user has"
        " in /etc/subuid), or `shared`.",
    )
    limits = fields.Dict(
        keys=fields.String(),
        values=fields.String(),
        allow_none=True,
        metadata=about(
            "How each limit is kept: `hard` (the kernel holds it), `watched` (the runner ends a job that is found above"
            " it), or `none`."
        ),
    )
    network = nullable(fields.String, "Why jobs cannot have the network; null when they can.")


class SysInfo(Schema):
    """The service's version, and whether it is ready."""

    version = fields.String(metadata=about("The service's version."))
    ready = fields.Boolean(metadata=about("Whether the database answers."))
    runners = fields.List(
        fields.Nested(RunnerFacts),
        allow_none=True,
        metadata=about("The runners that are up, for administrators; null for others."),
    )


class RunnerRecord(Schema):
    """A runner that is up."""

    name = fields.String(metadata=about("Its name on its host."))
    state = fields.String(metadata=about("`live`, or `draining` before it stops."))
    slots = fields.Integer(metadata=about("Jobs that it can run at once."))
    running = fields.Integer(metadata=about("Jobs that it holds now."))


class Stats(Schema):
    """Figures about one's jobs; administrators see all jobs."""

    jobs = fields.Dict(
        keys=fields.String(),
        values=fields.Integer(),
        metadata=about("Jobs by status: those that wait or run now, and those of the last 24 hours that ended."),
    )
    oldest_ready_seconds = nullable(
        fields.Float,
        "How long the next job to start has waited since it could start; of all users' next jobs, the longest.",
    )
    runners = fields.List(fields.Nested(RunnerRecord), metadata=about("The runners that are up."))


class Nothing(Schema):
    """No data."""
