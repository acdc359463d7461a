"""The audit log: who did what to which object, from where, with which token, and how that ended.

An entry about something that was done is written in the transaction that does it, so there are both or neither. What
was refused is written behind the answer (see `refusals`). Entries are only ever added: the database refuses to change
or delete them.

action
    What an endpoint does, such as ``job.submit``; see `baselayer.handler.endpoint`. `READ` stands for all that change
    nothing.
object
    The public id of the job, the number of the token, the name of the user or secret that it was done to.
outcome
    `DONE`, the code of the error that refused it, or `DROPPED` (see `refusals`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Row, literal, select, text, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from baselayer import token
from baselayer.fields import rfc3339
from baselayer.query import Query
from shell_service.models import Audit

DONE = "ok"
DROPPED = "dropped"
SUBMIT = "job.submit"
READ = "read"
REFUSALS = "refusals"  # many at once
OPERATOR = "the operator"  # who works at the machine itself; as names of users hold no spaces, nobody else
LONGEST = 200  # characters of an object, or of a path

_ALWAYS = datetime.min.replace(tzinfo=UTC)
_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Entry:
    """What is to be written. `status` is that of the answer."""

    action: str
    object: str | None = None
    user_id: int | None = None
    username: str | None = None
    token_id: int | None = None
    address: str | None = None
    request_id: str | None = None
    outcome: str = DONE
    status: int | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    def dump(self) -> str:
        """As the database's functions take it."""
        return orjson.dumps(self).decode()


def clean(given: str) -> str:
    """What may be written of a text that anybody can send: not long, nothing that is a token, no NUL."""
    return token.masked(given[: 2 * LONGEST]).replace("\0", "\ufffd")[:LONGEST]


def write(entries: Sequence[Entry]) -> Query[None]:
    """Add entries to the log."""
    return Query(
        "SELECT write_audit(CAST(%(entries)s AS json[]))",
        {"entries": [entry.dump() for entry in entries]},
        lambda rows: None,
    )


def by_operator(session: Session, action: str, name: str | None, detail: Mapping[str, Any]) -> None:
    """Write of something that is done at the machine itself, without the API."""
    write([Entry(action, name, username=OPERATOR, detail=detail)]).on(session)


# -- reading -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filter:
    """Which entries are wanted."""

    object: str | None = None
    user: str | None = None
    action: str | None = None
    outcome: str | None = None
    after: datetime | None = None
    before: datetime | None = None


class Place(NamedTuple):
    """A place in the log, which is in the order of time: that of the entry with this time and id."""

    at: datetime
    id: int


class _Given(NamedTuple):
    """A filter, and what most entries have in its column, where the index leaves them out."""

    column: InstrumentedAttribute[Any]
    value: str
    usual: str | None


def page(session: Session, wanted: Filter, limit: int, before: Place | None) -> list[Row[Any]]:
    """Up to `limit` entries, newest first, from before that place.

    Any single filter reads as many entries as it returns, however long the log is: each column has an index that goes
    on with the time, and bounds of both together, unlike an equality, let the planner take no other. What most entries
    are has none, and is found by the time. Needs a transaction of its own.
    """
    session.execute(text("SET LOCAL enable_sort = off"))  # statistics are of yesterday: walk along an index whatever
    given = [
        _Given(column, value, usual)
        for column, value, usual in (
            (Audit.object, wanted.object, None),  # the fewest entries first
            (Audit.outcome, wanted.outcome, DONE),
            (Audit.action, wanted.action, SUBMIT),
            (Audit.username, wanted.user, None),
        )
        if value is not None
    ]
    lead = next((item for item in given if item.value != item.usual), None)
    names = [lead.column] if lead else []
    values = [literal(lead.value)] if lead else []
    end = min(before or Place(_NEVER, 0), Place(wanted.before or _NEVER, 0))
    statement = select(*Audit.__table__.columns).where(
        tuple_(*names, Audit.at) > tuple_(*values, literal(wanted.after or _ALWAYS)),
        tuple_(*names, Audit.at, Audit.id) < tuple_(*values, literal(end.at), literal(end.id)),
        *(item.column == item.value for item in given if item is not lead),
    )
    if lead and lead.usual:  # as the index says of itself
        statement = statement.where(lead.column != lead.usual)
    order = [column.desc() for column in (*names, Audit.at, Audit.id)]
    return list(session.execute(statement.order_by(*order).limit(limit)))


def record(row: Row[Any]) -> dict[str, Any]:
    """What the API tells of an entry."""
    return {**row._mapping, "at": rfc3339(row.at)}
