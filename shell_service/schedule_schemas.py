"""What requests about schedules may say, and what answers tell of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from marshmallow import Schema, ValidationError, fields, post_load, validate, validates_schema

from baselayer.fields import Flag, Instant, Number, Pairs, Request, Text, Whole, about
from shell_service import webhook_schemas
from shell_service.models import CATCH_UPS, OVERLAPS
from shell_service.schemas import DAY, NAME, PageQuery, nullable
from shell_service.script_schemas import Defaults, Value
from shell_service.timetable import Unusable, zone

_SCRIPT = f"({NAME}/)?{NAME}"
_KINDS = ("cron", "every", "at")
# Beyond it calendars and zones know no end.
_YEARS = validate.Range(datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC))


class ScheduleFields(Request):
    """When a schedule fires, and what it makes then."""

    version = Whole(
        low=1, high=2**31 - 1, allow_none=True, metadata=about("Which version; null: the newest of then.", 1)
    )
    parameters = Pairs(Text(high=64), Value(), high=1000, metadata=about("Values by parameter.", {"days": 30}))
    overrides = fields.Nested(Defaults, metadata=about("What its jobs ask for instead of the script's defaults."))
    cron = Text(
        low=1,
        high=200,
        allow_none=True,
        metadata=about(
            "Five fields: minute, hour, day of the month, month, day of the week; or `@hourly`, `@daily`, `@weekly`,"
            " `@monthly`, `@yearly`.",
            "30 2 * * 1-5",
        ),
    )
    every = Number(
        low=1, high=10 * 366 * DAY, allow_none=True, metadata=about("Or seconds from one fire to the next.", 3600)
    )
    at = Instant(allow_none=True, validate=_YEARS, metadata=about("Or a single time.", "2030-01-31T12:00:00Z"))
    timezone = Text(
        low=1, high=100, metadata=about("Where `cron` is read: a name of the IANA's time zones.", "America/New_York")
    )
    start = Instant(allow_none=True, validate=_YEARS, metadata=about("Does not fire before.", "2030-01-31T12:00:00Z"))
    end = Instant(allow_none=True, validate=_YEARS, metadata=about("Does not fire after.", "2031-01-31T12:00:00Z"))
    jitter = Number(
        low=0, high=DAY, metadata=about("Each fire comes up to so many seconds late, so that not all come at once.", 30)
    )
    catch_up = fields.String(
        validate=validate.OneOf(CATCH_UPS),
        metadata=about(
            "What is done about fires that were missed, as no scheduler ran: `none`; `last`: one for all of them;"
            " `all`: the last `catch_up_limit` of them.",
            "none",
        ),
    )
    catch_up_limit = Whole(low=1, high=1000, metadata=about("How many are made up for with `all`.", 100))
    notify = webhook_schemas.targets("Where to tell of the end of each of its jobs.")
    overlap = fields.String(
        allow_none=True,
        validate=validate.OneOf(OVERLAPS[1:4]),
        metadata=about(
            "What is done about other jobs of the script that have not ended, beside what the script says: `skip`,"
            " `cancel_previous` or `queue_latest`; the last two are for who may change the script."
        ),
    )

    @validates_schema
    def _consistent(self, data: dict[str, Any], **kwargs: Any) -> None:
        problems: dict[str, list[str]] = {}
        kinds = [name for name in _KINDS if data.get(name) is not None]
        if len(kinds) > 1:
            problems[kinds[1]] = ["Give one of cron, every and at."]
        try:
            if "timezone" in data:
                zone(data["timezone"])
        except Unusable as error:
            problems["timezone"] = [str(error)]
        if data.get("start") and data.get("end") and data["start"] > data["end"]:
            problems["end"] = ["Must not be before start."]
        if problems:
            raise ValidationError(problems)


class ScheduleRequest(ScheduleFields):
    """A schedule to be made."""

    script = Text(
        low=1,
        high=201,
        pattern=_SCRIPT,
        required=True,
        metadata=about("The script: its name, or `owner/name` of one that is shared with you.", "backup"),
    )
    enabled = Flag(load_default=True, metadata=about("Whether it fires; else it is paused.", True))

    @validates_schema(skip_on_field_errors=False, pass_original=True)
    def _has_times(self, data: dict[str, Any], given: dict[str, Any], **kwargs: Any) -> None:
        if isinstance(given, dict) and all(given.get(name) is None for name in _KINDS):
            raise ValidationError({"cron": ["Give one of cron, every and at."]})

    @post_load
    def _complete(self, data: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        unnamed = dict.fromkeys(("version", *_KINDS, "start", "end", "overlap"))
        plain = {"parameters": {}, "overrides": {}, "notify": [], "timezone": "UTC", "jitter": 0.0}
        return {**unnamed, **plain, "catch_up": "none", "catch_up_limit": 100, **data}


class SchedulePatch(ScheduleFields):
    """What is to be another way; one of `cron`, `every` and `at` replaces whichever there was."""


class SchedulesQuery(PageQuery):
    """Which schedules are meant, and how many at once."""

    script = Text(low=3, high=201, load_default=None, metadata=about("Only those of this script, as `owner/name`."))


class NextQuery(Schema):
    """How many."""

    count = Whole(low=1, high=100, load_default=5, metadata=about("How many at the most.", 5))


class ScheduleRecord(Schema):
    """A schedule: when it fires, and what it makes then."""

    id = fields.Integer(metadata=about("Its number."))
    owner = fields.String(metadata=about("Its owner's username: its jobs are his."))
    script = fields.String(metadata=about("The script, as `owner/name`."))
    version = nullable(fields.Integer, "Which version; null: the newest of then.")
    parameters = fields.Dict(
        keys=fields.String(), allow_none=True, metadata=about("Values by parameter; null in lists where they are long.")
    )
    overrides = fields.Dict(
        keys=fields.String(),
        allow_none=True,
        metadata=about("What its jobs ask for instead of the script's defaults; null in lists where that is long."),
    )
    overlap = nullable(fields.String, "What is done about other jobs of the script; null: as the script says.")
    cron = nullable(fields.String, "A line of cron.")
    every = nullable(fields.Float, "Or seconds from one fire to the next.")
    at = nullable(Instant, "Or a single time.")
    timezone = fields.String(metadata=about("Where `cron` is read."))
    start = nullable(Instant, "Does not fire before.")
    end = nullable(Instant, "Does not fire after.")
    jitter = fields.Float(metadata=about("Seconds that a fire may come late."))
    catch_up = fields.String(metadata=about("What is done about fires that were missed: `none`, `last` or `all`."))
    catch_up_limit = fields.Integer(metadata=about("How many are made up for with `all`."))
    notify = fields.List(
        fields.Nested(webhook_schemas.TargetRecord), metadata=about("Where the end of each of its jobs is told of.")
    )
    enabled = fields.Boolean(metadata=about("Whether it fires; else it is paused."))
    problem = nullable(
        fields.String, "Why it paused itself, or what became of its last fire where no job was made of it."
    )
    created_at = Instant(metadata=about("When it was made."))
    modified = Instant(metadata=about("When it was last changed."))
    next_fire = nullable(Instant, "When it fires next; null where it does not any more, or is paused.")
    last_fire = nullable(Instant, "The last instant for which it fired.")
    last_job = nullable(fields.String, "The id of the last job that it made.")


class FireRecord(Schema):
    """A time at which a schedule fires."""

    at = Instant(metadata=about("When, in UTC."))
    local = fields.String(metadata=about("The same in the schedule's time zone, with its offset."))
