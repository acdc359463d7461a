"""One statement as a value: what is asked, and what is made of the answer."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy.orm import Session

R = TypeVar("R")

Rows = Sequence[tuple[Any, ...]]


@dataclass(frozen=True)
class Query(Generic[R]):
    """A statement in the driver's form (``%(name)s``) with its parameters; `read` makes the result of its rows.

    It runs within a transaction (`on` a session) or by itself (`Database.fetch`). Then, if it is `kept`, each
    connection keeps it parsed and planned, which takes longer than a short one runs. Such a one has to find its rows by
    indexes, and to say of which types its parameters are.
    """

    sql: str
    parameters: Mapping[str, Any]
    read: Callable[[Rows], R]
    kept: bool = False

    def on(self, session: Session) -> R:
        """The result, asked for in the session's transaction."""
        found = session.connection().exec_driver_sql(self.sql, dict(self.parameters))
        return self.read([tuple(row) for row in found] if found.returns_rows else [])


def as_uuid(value: Any) -> uuid.UUID:
    """A uuid of a row: the driver gives text, unless it was told otherwise."""
    return value if isinstance(value, uuid.UUID) else uuid.UUID(value)


def as_uuids(values: Any) -> list[uuid.UUID]:
    """An array of uuid of a row, in the same way."""
    if isinstance(values, str):
        values = [item for item in values.strip("{}").split(",") if item]
    return [as_uuid(value) for value in values]
