"""What requests may say of webhooks, and what answers tell of deliveries."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from marshmallow import Schema, ValidationError, fields, post_load, validate

from baselayer.fields import Instant, Items, Request, Text, about
from shell_service.models import FINAL_STATUSES

MAX_TARGETS = 5  # of a job, a script, or a schedule


def _is_address(url: str) -> None:
    if any(not "!" <= character <= "~" for character in url):
        raise ValidationError("Must be an address of ASCII characters without spaces.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValidationError("Must be an address such as https://example.org/hook.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValidationError("Must be an address such as https://example.org/hook.")
    if parts.username is not None or parts.password is not None:
        raise ValidationError("Must not hold a name or a password; deliveries are signed.")


class Target(Request):
    """Where to tell of a job's end."""

    url = Text(
        low=1,
        high=2000,
        required=True,
        validate=[_is_address],
        metadata=about("The address that gets a POST.", "https://example.org/hook"),
    )
    on = Items(
        fields.String(validate=validate.OneOf(FINAL_STATUSES)),
        low=1,
        high=len(FINAL_STATUSES),
        unique=True,
        metadata=about("Which ends are told of; all where it is not given.", ["FAILED", "TIMEOUT"]),
    )

    @post_load
    def _complete(self, data: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {"on": list(FINAL_STATUSES), **data}


def targets(text: str, **options: Any) -> Items:
    """The field ``notify``."""
    return Items(fields.Nested(Target), high=MAX_TARGETS, metadata=about(text), **options)


class TargetRecord(Schema):
    """Where a job's end is told of."""

    url = fields.String(metadata=about("The address."))
    on = fields.List(fields.String(), metadata=about("Which ends."))


class KeyRecord(Schema):
    """A key that signs deliveries. It is in this answer only."""

    key = fields.String(metadata=about("The key, as Standard Webhooks has it: `whsec_` and base64."))


class DeliveryRecord(Schema):
    """What is told to a webhook of a job's end, and what came of it."""

    id = fields.String(metadata=about("Its id, as in `webhook-id`: the same at each attempt."))
    url = fields.String(metadata=about("Where to."))
    status = fields.String(metadata=about("The status that is told of."))
    attempts = fields.Integer(metadata=about("How often it was tried."))
    answer = fields.Integer(allow_none=True, metadata=about("The HTTP status of the last answer."))
    problem = fields.String(allow_none=True, metadata=about("Why it is not delivered, after the last attempt."))
    created_at = Instant(metadata=about("When the job ended."))
    delivered_at = Instant(allow_none=True, metadata=about("When the other side had it."))
    next_attempt = Instant(allow_none=True, metadata=about("When it is tried again; null when that is over."))
