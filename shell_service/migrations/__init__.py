"""The schema's history. `upgrade` brings a database to the newest version; old rows are never lost on the way.

Alembic is imported where it works: whoever only asks for the version would keep 12 MiB of it for nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text

from shell_service.migrations import functions, ownership

if TYPE_CHECKING:
    import alembic.config

HEAD = "0007"  # the newest version that this code knows
_LOCK = 7_100  # advisory lock: one upgrade at a time


def alembic_config(connection: Connection | None = None) -> alembic.config.Config:
    """Alembic's configuration for this folder, working over `connection`."""
    import alembic.config

    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    return config


def current(connection: Connection) -> str | None:
    """The version of the database, or None when it is empty, or the connection's role may not read it yet."""
    if not connection.scalar(text("SELECT has_table_privilege(to_regclass('alembic_version'), 'SELECT')")):
        return None
    version: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return version


def is_current(connection: Connection) -> bool:
    """Whether tables and functions of the database are those that this code knows."""
    return current(connection) == HEAD and functions.are_current(connection)


def remove(connection: Connection) -> None:
    """Remove everything of ours from the database."""
    import alembic.command

    if current(connection) is not None:
        alembic.command.downgrade(alembic_config(connection), "base")
        connection.execute(text("DROP TABLE alembic_version"))
    connection.commit()


def upgrade(connection: Connection, service: str | None = None) -> None:
    """Bring the database to `HEAD`; of several that try at once, one does it and the others wait.

    Where the services log in with another role than the connection's, `service`, what is theirs becomes theirs, in the
    same transaction (see `ownership`). Raises `ownership.OwnershipError` where that cannot be.
    """
    import alembic.command

    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
    try:
        if service:
            ownership.check(connection, service)
        if not is_current(connection):
            alembic.command.upgrade(alembic_config(connection), "head")
        if service:
            ownership.settle(connection, service)
        connection.commit()
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _LOCK})
        connection.commit()
