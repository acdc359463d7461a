"""The schema's history. `upgrade` brings a database to the newest version; old rows are never lost on the way."""

from __future__ import annotations

from pathlib import Path

import alembic.command
import alembic.config
import alembic.script
import sqlalchemy
from sqlalchemy import Connection, text

_LOCK = 7_100  # advisory lock: one upgrade at a time


def alembic_config(connection: Connection | None = None) -> alembic.config.Config:
    """Alembic's configuration for this folder, working over `connection`."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    return config


def head() -> str:
    """The newest version that this code knows."""
    newest = alembic.script.ScriptDirectory.from_config(alembic_config()).get_current_head()
    assert newest is not None
    return newest


def current(connection: Connection) -> str | None:
    """The version of the database, or None when it is empty."""
    if not sqlalchemy.inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return version


def remove(connection: Connection) -> None:
    """Remove everything of ours from the database."""
    if current(connection) is not None:
        alembic.command.downgrade(alembic_config(connection), "base")
        connection.execute(text("DROP TABLE alembic_version"))
    connection.commit()


def upgrade(connection: Connection) -> None:
    """Bring the database to `head`; of several that try at once, one does it and the others wait."""
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
    try:
        connection.commit()
        alembic.command.upgrade(alembic_config(connection), "head")
        connection.commit()
    finally:
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _LOCK})
        connection.commit()
