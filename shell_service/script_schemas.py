"""What requests about scripts and groups may say, and what answers tell of them."""

from __future__ import annotations

from typing import Any

import marshmallow
from marshmallow import Schema, ValidationError, fields, post_load, validate, validates_schema
from marshmallow.experimental.context import Context

from baselayer.fields import Flag, Instant, Items, Number, Pairs, Request, Text, Whole, about
from shell_service import parameters, webhook_schemas
from shell_service.models import LEVELS, OVERLAPS, STATUSES
from shell_service.schemas import (
    MOST,
    NAME,
    VARIABLE,
    Code,
    GivenFiles,
    JobRequest,
    JobRules,
    PageQuery,
    nullable,
    shell_of,
)

MAX_PARAMETERS = 100  # of a script
MOST_AT_ONCE = 1000  # of a script's jobs, where their number is limited
#: Names that no script can have: they stand behind a script's name in addresses, or lead elsewhere there.
RESERVED = frozenset(
    {".", ".."}
    | {"code", "diff", "files", "jobs", "purge", "restore", "revert", "run", "schedules"}
    | {"shares", "status", "versions"}
)


class Value(fields.Raw):
    """Any JSON but lists and objects."""

    json_schema = {"type": ["string", "number", "boolean"]}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        if not isinstance(value, str | int | float):
            raise ValidationError("Must be text, a number, true or false.")
        return value


class Parameter(Request):
    """What a script asks whoever runs it."""

    name = Text(pattern=VARIABLE, required=True, metadata=about("Its name.", "days"))
    type = fields.String(
        required=True,
        validate=validate.OneOf(parameters.TYPES),
        metadata=about("Its type; a secret's value is the name of a secret of whoever runs the script.", "integer"),
    )
    help = Text(high=1000, metadata=about("What it is for.", "How many days to keep."))
    default = Value(metadata=about("Its value where none is given.", 7))
    required = Flag(metadata=about("Whether it must be given; without a default it must, unless this is false."))
    minimum = Number(low=-MOST, high=MOST, metadata=about("The least number.", 1))
    maximum = Number(low=-MOST, high=MOST, metadata=about("The greatest number.", 365))
    min_length = Whole(low=0, high=100_000, metadata=about("Characters that a string must have."))
    max_length = Whole(low=0, high=100_000, metadata=about("Characters that a string may have."))
    choices = Items(Text(high=1000), high=1000, unique=True, metadata=about("The values of a choice."))
    env = Text(
        pattern=VARIABLE,
        allow_none=True,
        metadata=about("The variable that holds the value; by default of the parameter's name, none where it is null."),
    )
    position = Whole(
        low=1, high=MAX_PARAMETERS, metadata=about("Its place among the script's arguments, before all others.", 1)
    )

    @validates_schema
    def _consistent(self, data: dict[str, Any], **kwargs: Any) -> None:
        if problems := parameters.declaration_problems(data):
            raise ValidationError(problems)


class Defaults(JobRequest):
    """What jobs of a script ask for unless they are run with something else."""

    class Meta:
        exclude = ("code", "name", "shell", "run_at", "delay", "notify")

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        field_obj.load_default = marshmallow.missing  # what is not named is not stored

    @post_load
    def _complete(self, data: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return data


class Overrides(Defaults):
    """What a job is to ask for instead of the script's defaults; of `env` and `limits` what is named."""

    class Meta:
        exclude = ("code", "name", "shell")


class ScriptFields(GivenFiles):
    """A script, but its name."""

    code = Code(metadata=about("The script: text, or a list of lines.", 'echo "kept for $days days"'))
    shell = Text(metadata=about("The interpreter: one of those that GET /api/shells lists; `sh` by default.", "sh"))
    description = Text(high=10_000, metadata=about("What it is for.", "Backs up the database."))
    parameters = Items(
        fields.Nested(Parameter),
        high=MAX_PARAMETERS,
        metadata=about("What it asks whoever runs it."),
    )
    defaults = fields.Nested(Defaults, metadata=about("What its jobs ask for unless they are run with something else."))
    overlap = fields.String(
        validate=validate.OneOf(OVERLAPS),
        metadata=about(
            "What happens when it is run while another of its jobs has not ended. `queue` (the default): it waits until"
            " those before it have ended. `skip`: it is refused with 409. `cancel_previous`: the others are cancelled."
            " `queue_latest`: those that wait are cancelled, so that at most one waits. `parallel`: they run at once,"
            " as many as `max_running`.",
            "queue",
        ),
    )
    max_running = Whole(
        low=1,
        high=MOST_AT_ONCE,
        allow_none=True,
        metadata=about("How many run at once with the overlap `parallel`; null: as many as there are."),
    )
    notify = webhook_schemas.targets("Where to tell of the end of each of its jobs, whoever runs it.")
    message = Text(high=1000, load_default="", metadata=about("Why it is as it is, for its history.", "First version"))

    @validates_schema
    def _within_limits(self, data: dict[str, Any], **kwargs: Any) -> None:
        rules: JobRules = Context.get()
        if (shell := data.get("shell")) is not None and shell not in rules.shells:
            raise ValidationError({"shell": [f"Must be one of: {', '.join(rules.shells)}."]})


class ScriptRequest(ScriptFields):
    """A script to be saved."""

    name = Text(low=1, high=100, pattern=NAME, required=True, metadata=about("Its name.", "backup"))

    @post_load
    def _complete(self, data: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {"code": "", **data, "shell": shell_of(data)}

    @validates_schema
    def _name_is_free(self, data: dict[str, Any], **kwargs: Any) -> None:
        if data["name"] in RESERVED:
            raise ValidationError({"name": [f"{data['name']!r} has a meaning in the API's addresses; take another."]})


class ScriptChange(ScriptFields):
    """What is to be another way; what is not named stays as it is."""

    NEEDED = False


class RevertRequest(Request):
    """Which version is to be the newest again."""

    version = Whole(low=1, high=2**31 - 1, required=True, metadata=about("Its number.", 1))
    message = Text(high=1000, load_default="", metadata=about("Why.", "The second one lost files."))


class VersionQuery(Schema):
    """Of which version."""

    version = Whole(low=1, high=2**31 - 1, load_default=None, metadata=about("Its number; the newest by default.", 1))


class DiffQuery(Schema):
    """Between which versions."""

    to = Whole(low=1, high=2**31 - 1, load_default=None, metadata=about("The later; the newest by default.", 2))

    class Meta:
        include = {  # a word of Python's
            "from": Whole(
                low=1, high=2**31 - 1, load_default=None, metadata=about("The earlier; by default the one before.", 1)
            )
        }


class ScriptsQuery(PageQuery):
    """Which scripts are meant, and how many at once."""

    owner = Text(low=1, high=100, load_default=None, metadata=about("Only those of this user."))
    archived = Flag(load_default=False, metadata=about("Those that are archived, instead of the others."))


class RunRequest(Request):
    """How a script is to be run."""

    parameters = Pairs(
        Text(high=64), Value(), high=1000, load_default=dict, metadata=about("Values by parameter.", {"days": 30})
    )
    version = Whole(
        low=1, high=2**31 - 1, load_default=None, metadata=about("Which version; the newest by default.", 1)
    )
    overrides = fields.Nested(
        Overrides, load_default=dict, metadata=about("What it is to ask for instead of the script's defaults.")
    )
    wait = Number(
        low=0, high=300, load_default=None, metadata=about("Seconds to wait for its end before answering.", 10)
    )
    share_output = Flag(
        load_default=False,
        metadata=about("Whether the script's owner may see the job's record and output, if that is somebody else."),
    )


class ShareRequest(Request):
    """Whom a script is to be shared with, and how."""

    user = Text(low=1, high=100, load_default=None, metadata=about("A user.", "bob"))
    group = Text(low=1, high=100, load_default=None, metadata=about("Or a group of yours."))
    level = fields.String(
        required=True,
        validate=validate.OneOf(LEVELS),
        metadata=about("`view`: see it; `run`: that, and run it; `edit`: that, and change it.", "run"),
    )

    @validates_schema
    def _one_of_both(self, data: dict[str, Any], **kwargs: Any) -> None:
        if (data["user"] is None) == (data["group"] is None):
            raise ValidationError({"user": ["Give either user or group."]})


class GroupRequest(Request):
    """A group to be made."""

    name = Text(low=1, high=100, pattern=NAME, required=True, metadata=about("Its name.", "ops"))
    description = Text(high=10_000, load_default="", metadata=about("What it is for.", "Who runs the backups."))


class GroupPatch(Request):
    """What is to be another way."""

    description = Text(high=10_000, metadata=about("What it is for.", "Who runs the backups."))


class MemberRequest(Request):
    """How a user is in a group."""

    owner = Flag(load_default=False, metadata=about("Whether he manages the group, too.", False))


class RunsQuery(PageQuery):
    """Which jobs of a script are meant, and how many at once."""

    status = fields.String(
        load_default=None, validate=validate.OneOf(STATUSES), metadata=about("Only these.", "FAILED")
    )


# -- answers -----------------------------------------------------------------------------------------------------------


class ParameterRecord(Schema):
    """A parameter of a script; what was not given when it was declared is null."""

    name = fields.String(metadata=about("Its name."))
    type = fields.String(metadata=about("Its type."))
    help = nullable(fields.String, "What it is for.")
    default = fields.Raw(allow_none=True, metadata=about("Its value where none is given; null where it has none."))
    required = fields.Boolean(metadata=about("Whether it must be given."))
    minimum = nullable(fields.Float, "The least number.")
    maximum = nullable(fields.Float, "The greatest number.")
    min_length = nullable(fields.Integer, "Characters that a string must have.")
    max_length = nullable(fields.Integer, "Characters that a string may have.")
    choices = fields.List(fields.String(), allow_none=True, metadata=about("The values of a choice."))
    env = nullable(fields.String, "The variable that holds the value.")
    position = nullable(fields.Integer, "Its place among the script's arguments.")


class VersionSummary(Schema):
    """A version of a script, without what it says."""

    version = fields.Integer(metadata=about("Its number, from 1 on."))
    digest = fields.String(metadata=about("The SHA-256 of what it says to run, in hex: the same for the same."))
    author = fields.String(metadata=about("Who saved it."))
    message = fields.String(metadata=about("Why."))
    created_at = Instant(metadata=about("When."))


class FileRecord(Schema):
    """One of the files that a script consists of."""

    path = fields.String(metadata=about("Its path."))
    size = fields.Integer(metadata=about("Bytes."))
    sha256 = fields.String(metadata=about("The SHA-256 of its content, in hex."))


class Content(Schema):
    """What a version of a script says to run."""

    code = nullable(fields.String, "The script; null where it consists of files.")
    upload = nullable(fields.String, "The SHA-256 of the files, in hex.")
    files = fields.List(
        fields.Nested(FileRecord), allow_none=True, metadata=about("The files; null where they came as an archive.")
    )
    entrypoint = nullable(fields.String, "Which of the files is run.")
    shell = fields.String(
        metadata=about("The interpreter; `auto`: the entrypoint's `#!` line, or its ending, says which.")
    )


class VersionRecord(Content, VersionSummary):
    """A version of a script: what it says, and who said so. It never changes."""

    parameters = fields.List(fields.Nested(ParameterRecord), metadata=about("What it asks whoever runs it."))
    defaults = fields.Dict(keys=fields.String(), metadata=about("What its jobs ask for."))


class ScriptSummary(Schema):
    """A script, without what it says."""

    owner = fields.String(metadata=about("Its owner's username."))
    name = fields.String(metadata=about("Its name."))
    description = fields.String(metadata=about("What it is for."))
    level = fields.String(metadata=about("What you may do with it: `own`, `edit`, `run` or `view`."))
    overlap = fields.String(metadata=about("What happens when it is run while another of its jobs has not ended."))
    max_running = nullable(fields.Integer, "How many run at once with the overlap `parallel`; null: no limit.")
    version = fields.Integer(metadata=about("The number of its newest version."))
    created_at = Instant(metadata=about("When it was saved first."))
    modified = Instant(metadata=about("When it was last changed."))
    archived_at = nullable(Instant, "When it was deleted: then it can be read, and not run or changed.")


class ScriptRecord(Content, ScriptSummary):
    """A script, with its newest version."""

    notify = fields.List(
        fields.Nested(webhook_schemas.TargetRecord),
        allow_none=True,
        metadata=about("Where the end of each of its jobs is told of; null for who may not change it."),
    )
    revision = fields.Integer(metadata=about("Counts its changes. In quotes it is the `ETag`."))
    digest = fields.String(metadata=about("The SHA-256 of what it says to run, in hex."))
    author = fields.String(metadata=about("Who saved the newest version."))
    message = fields.String(metadata=about("Why."))
    parameters = fields.List(fields.Nested(ParameterRecord), metadata=about("What it asks whoever runs it."))
    defaults = fields.Dict(keys=fields.String(), metadata=about("What its jobs ask for."))


class ShareRecord(Schema):
    """That a script is shared."""

    id = fields.Integer(metadata=about("The share's number."))
    user = nullable(fields.String, "The user that it is shared with.")
    group = nullable(fields.String, "Or the group.")
    level = fields.String(metadata=about("`view`, `run` or `edit`."))
    created_at = Instant(metadata=about("Since when."))


class RunRecord(Schema):
    """A job of a script, as the script's owner sees it: `GET /api/jobs/{id}` shows all of it to the job's owner."""

    id = fields.String(metadata=about("The job's id."))
    submitter = fields.String(metadata=about("Whose job it is."))
    version = fields.Integer(metadata=about("The version of the script."))
    status = fields.String(validate=validate.OneOf(STATUSES), metadata=about("Its status."))
    reason = nullable(fields.String, "How it ended, as a sentence.")
    created_at = Instant(metadata=about("When it was submitted."))
    started_at = nullable(Instant, "When its script began.")
    finished_at = nullable(Instant, "When it reached its final status.")
    return_code = nullable(fields.Integer, "Exit code; null when a signal ended it.")
    wall_seconds = nullable(fields.Float, "How long the script ran.")
    share_output = fields.Boolean(metadata=about("Whether the script's owner may see the rest."))


class Durations(Schema):
    """How long jobs ran, in seconds."""

    shortest = fields.Float(metadata=about("The shortest."))
    median = fields.Float(metadata=about("Half of them ran no longer."))
    longest = fields.Float(metadata=about("The longest."))


class ScriptStatus(Schema):
    """How a script does: of its jobs that the caller may know of."""

    latest = fields.Nested(RunRecord, allow_none=True, metadata=about("The newest job; null where there is none."))
    last_success = fields.Nested(RunRecord, allow_none=True, metadata=about("The newest that ended COMPLETED."))
    last_failure = fields.Nested(
        RunRecord, allow_none=True, metadata=about("The newest that ended otherwise, CANCELLED ones left out.")
    )
    waiting = fields.Integer(metadata=about("Jobs that wait now."))
    running = fields.Integer(metadata=about("Jobs that run now."))
    counted = fields.Integer(metadata=about("How many ended jobs the figures are of: the last 100 at the most."))
    success_rate = nullable(fields.Float, "Which part of them ended COMPLETED, from 0 to 1; null where there are none.")
    durations = fields.Nested(
        Durations,
        allow_none=True,
        metadata=about("How long those ran that ended COMPLETED; null where there are none."),
    )


class MemberRecord(Schema):
    """A member of a group."""

    username = fields.String(metadata=about("The user."))
    owner = fields.Boolean(metadata=about("Whether he manages the group."))


class GroupRecord(Schema):
    """A group of users."""

    name = fields.String(metadata=about("Its name."))
    description = fields.String(metadata=about("What it is for."))
    created_at = Instant(metadata=about("When it was made."))
    modified = Instant(metadata=about("When it last changed."))
    members = fields.List(fields.Nested(MemberRecord), metadata=about("Who is in it."))
