"""What requests about users, their tokens and secrets may say, and what answers tell of them."""

from __future__ import annotations

from typing import Any

from marshmallow import Schema, ValidationError, fields, validate, validates

from baselayer.fields import Flag, Instant, Items, Number, Request, Text, Whole, about
from shell_service.schemas import CENTURY, DAY, MOST, NAME, JobLimits, JobLimitsRequest, nullable
from shell_service.scopes import MEANINGS

MAX_SECRET = 64 * 1024  # bytes


class TokenRequest(Request):
    """A token to be made."""

    name = Text(low=1, high=100, required=True, metadata=about("What you call it.", "laptop"))
    scopes = Items(
        fields.String(validate=validate.OneOf(list(MEANINGS))),
        low=1,
        high=len(MEANINGS),
        load_default=None,
        metadata=about("What it is good for; by default the same as the token that you use.", ["jobs:read"]),
    )
    expires_in = Whole(low=1, high=CENTURY, load_default=None, metadata=about("Seconds until it expires.", DAY))
    username = Text(low=1, high=100, load_default=None, metadata=about("For whom (administrators)."))


class RotateRequest(Request):
    """How to replace a token."""

    overlap = Whole(low=0, high=7 * DAY, load_default=0, metadata=about("Seconds that the old one still works.", 0))


class TokenRecord(Schema):
    """A token, without its secret."""

    id = fields.Integer(metadata=about("Its public number."))
    name = fields.String(metadata=about("What its owner calls it."))
    username = fields.String(metadata=about("Its owner."))
    scopes = fields.List(fields.String(), metadata=about("What it is good for, as far as its owner's role goes."))
    prefix = fields.String(metadata=about("Its first characters, to tell tokens apart."))
    created_at = Instant(metadata=about("When it was made."))
    expires_at = nullable(Instant, "When it stops working.")
    last_used_at = nullable(Instant, "When it was last used, to the minute.")


class NewTokenRecord(TokenRecord):
    """A token just made. The secret is in this answer only."""

    token = fields.String(metadata=about("The whole token. Keep it: nobody can show it again."))


class OwnJobLimits(JobLimitsRequest):
    """Limits of the jobs of a user; null stands for the configured one."""

    timeout = Number(low=0, high=MOST, closed=False, metadata=about("Seconds that a script may run.", 3600))

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        field_obj.allow_none = True


class OwnBounds(Request):
    """What a user's jobs get, and may ask for."""

    default = fields.Nested(
        OwnJobLimits, allow_none=True, metadata=about("What a job gets that asks for nothing, as far as `max` allows.")
    )
    max = fields.Nested(OwnJobLimits, allow_none=True, metadata=about("The most that a job may ask for."))


class SecretRequest(Request):
    """A secret to be stored."""

    value = Text(
        low=4,
        high=MAX_SECRET,
        required=True,
        metadata=about(
            f"The value: 4 characters or more, as less could not be hidden in what jobs print, {MAX_SECRET} bytes at"
            " the most.",
            "correct horse battery staple",
        ),
    )

    @validates("value")
    def _not_long(self, value: str, **kwargs: Any) -> None:
        if len(value.encode()) > MAX_SECRET:
            raise ValidationError(f"Must be at most {MAX_SECRET} bytes.")


class SecretRecord(Schema):
    """A secret, without its value."""

    name = fields.String(metadata=about("What its owner calls it."))
    created_at = Instant(metadata=about("When it was first stored."))
    modified = Instant(metadata=about("When it was given its value."))


class LimitsRequest(Request):
    """Limits of a user; null stands for the configured ones."""

    max_running = Whole(low=0, high=10**6, allow_none=True, metadata=about("Jobs running at once.", 50))
    max_queued = Whole(low=0, high=10**7, allow_none=True, metadata=about("Jobs waiting at once.", 20000))
    jobs_per_minute = Whole(low=0, high=10**6, allow_none=True, metadata=about("Jobs submitted per minute.", 6000))
    job = fields.Nested(OwnBounds, allow_none=True, metadata=about("What each job gets, and may ask for."))
    network = Flag(allow_none=True, metadata=about("Whether jobs may have the network; null is false.", False))


class UserRequest(Request):
    """A user to be made."""

    username = Text(low=1, high=100, pattern=NAME, required=True, metadata=about("The user's name.", "carol"))
    role = fields.String(
        load_default="user", validate=validate.OneOf(["user", "admin"]), metadata=about("`user` or `admin`.", "user")
    )
    limits = fields.Nested(
        LimitsRequest,
        load_default=dict,
        metadata=about("Limits of the user's own; the configured ones hold for the rest."),
    )


class UserPatch(Request):
    """What to change of a user."""

    role = fields.String(validate=validate.OneOf(["user", "admin"]), metadata=about("`user` or `admin`.", "user"))
    active = Flag(metadata=about("false cancels the user's jobs and stops all tokens at once."))
    limits = fields.Nested(LimitsRequest, metadata=about("Those to change."))


class JobLimitsWithTimeout(JobLimits):
    """What a job may use, and for how long."""

    timeout = fields.Float(metadata=about("Seconds that a script may run."))


class BoundsRecord(Schema):
    """What a user's jobs get, and may ask for."""

    default = fields.Nested(JobLimitsWithTimeout, metadata=about("What a job gets that asks for nothing."))
    max = fields.Nested(JobLimitsWithTimeout, metadata=about("The most that a job may ask for."))


class LimitsRecord(Schema):
    """The limits that hold for a user."""

    max_running = fields.Integer(metadata=about("Jobs running at once."))
    max_queued = fields.Integer(metadata=about("Jobs waiting at once."))
    jobs_per_minute = fields.Integer(metadata=about("Jobs submitted per minute."))
    job = fields.Nested(BoundsRecord, metadata=about("What each job gets, and may ask for."))
    network = fields.Boolean(metadata=about("Whether jobs may have the network."))


class UserRecord(Schema):
    """A user."""

    id = fields.Integer(metadata=about("The user's number."))
    username = fields.String(metadata=about("The user's name."))
    role = fields.String(metadata=about("`user` or `admin`."))
    active = fields.Boolean(metadata=about("Whether the user's tokens work."))
    created_at = Instant(metadata=about("When the user was made."))
    modified = Instant(metadata=about("When the user last changed."))
    limits = fields.Nested(LimitsRecord, metadata=about("The limits that hold now."))


class WhoAmI(UserRecord):
    """Who calls, and what this token may do."""

    scopes = fields.List(fields.String(), metadata=about("What this token may do now."))
    token = fields.Nested(TokenRecord, allow_none=True, metadata=about("The token that was used."))
    running = fields.Integer(metadata=about("Jobs running now."))
    queued = fields.Integer(metadata=about("Jobs waiting now."))
