"""What requests for the audit log may say, and what is told of an entry."""

from __future__ import annotations

from marshmallow import Schema, fields

from baselayer.fields import Instant, Text, about
from shell_service.schemas import PageQuery


class AuditQuery(PageQuery):
    """Which entries are wanted, and how many at once."""

    user = Text(low=1, high=100, load_default=None, metadata=about("Only what this user did."))
    action = Text(low=1, high=100, load_default=None, metadata=about("Only this.", "token.create"))
    object = Text(low=1, high=200, load_default=None, metadata=about("Only what was done to this."))
    outcome = Text(low=1, high=100, load_default=None, metadata=about("Only what ended so.", "not_allowed"))
    after = Instant(load_default=None, metadata=about("Only after this time."))
    before = Instant(load_default=None, metadata=about("Only before this time."))


class AuditRecord(Schema):
    """An entry of the audit log: who did what to which object, from where, with which token, and how that ended."""

    id = fields.Integer(metadata=about("Its number. Numbers grow, with gaps."))
    at = Instant(metadata=about("When it was written."))
    user_id = fields.Integer(allow_none=True, metadata=about("Whoever did it; null for operators and strangers."))
    username = fields.String(
        allow_none=True, metadata=about("The name of then; `the operator` for what was done on the machine itself.")
    )
    token_id = fields.Integer(allow_none=True, metadata=about("The number of the token that was used."))
    address = fields.String(allow_none=True, metadata=about("Where the request came from, as the router saw it."))
    request_id = fields.String(allow_none=True, metadata=about("The request's number, as in the logs."))
    action = fields.String(metadata=about("What was done, or tried; `read` for all that changes nothing."))
    object = fields.String(
        allow_none=True,
        metadata=about("A job's id, a token's number, or the name of a user or secret; the first job of a batch."),
    )
    outcome = fields.String(
        metadata=about("`ok`, or the code of the error; `dropped` for many that were only counted.")
    )
    status = fields.Integer(allow_none=True, metadata=about("The HTTP status of the answer."))
    detail = fields.Dict(
        keys=fields.String(), metadata=about("A few things more, such as new values; of what was refused the path.")
    )
