"""The database's functions: one a file, each as it is now.

Tables have a history; functions have none. Every migration makes all of them anew, in its transaction.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import Connection, text

_NOTE = "functions "  # before their digest, in the comment on the table of the version


@functools.cache
def _sources() -> Mapping[str, str]:
    """The statements that make them, by name."""
    return {path.stem: path.read_text() for path in sorted(Path(__file__).parent.glob("*.sql"))}


def names() -> list[str]:
    """What they are called."""
    return list(_sources())


def _note() -> str:
    return _NOTE + hashlib.sha256("\0".join(_sources().values()).encode()).hexdigest()


def are_current(connection: Connection) -> bool:
    """Whether the database has those of this code. For one that has our tables."""
    found = connection.scalar(text("SELECT obj_description(CAST('alembic_version' AS regclass), 'pg_class')"))
    return bool(found == _note())


def create(connection: Connection) -> None:
    """Make them; there must be none of their names."""
    for source in _sources().values():
        connection.exec_driver_sql(source.replace("%", "%%"))
    connection.exec_driver_sql(f"COMMENT ON TABLE alembic_version IS '{_note()}'")


def remove(connection: Connection) -> None:
    """Remove what there is of their names, whatever arguments it takes."""
    found = connection.scalars(
        text(
            "SELECT CAST(CAST(oid AS regprocedure) AS text) FROM pg_proc"
            " WHERE proname = ANY(:names) AND pronamespace = CAST(current_schema() AS regnamespace)"
        ),
        {"names": names()},
    )
    for signature in found.all():
        connection.exec_driver_sql(f"DROP FUNCTION {signature}")
