"""Brings the database to the newest schema and makes the first administrator, then ends: 0, or 1 for "try again"."""

from __future__ import annotations

import logging
import sys
import time

import click
import sqlalchemy

from baselayer import log
from baselayer.postgres import PostgresError
from services.options import config_option
from shell_service import migrations, provision
from shell_service.settings import Settings

logger = logging.getLogger("migrate")
WAIT_SECONDS = 60
OLDEST = 14  # the oldest release of PostgreSQL that the service works with


class UnsuitableDatabase(PostgresError):
    """The server answers, but it is too old, or its database has another encoding; the message says what to do."""


def migrate(settings: Settings) -> None:
    """Wait for the database, upgrade its schema, provision; of several that migrate at once, one does it and the
    others wait. Raises `sqlalchemy.exc.OperationalError` when the database does not answer in time, and
    `UnsuitableDatabase` when it cannot hold what the service stores."""
    wait_until_up(settings.database_url, WAIT_SECONDS)
    engine = sqlalchemy.create_engine(settings.database_url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        check(connection)
    with engine.connect() as connection:
        before = migrations.current(connection)
        migrations.upgrade(connection)
        logger.info("schema: %s, was %s", migrations.current(connection), before or "empty")
    if provision.first_admin(engine, settings.tokens_file):
        logger.info("made the first administrator; its token is in %s", settings.tokens_file)


def check(connection: sqlalchemy.Connection) -> None:
    """Make sure that the database can hold what the service stores. Raises `UnsuitableDatabase`."""
    version, encoding, name = connection.exec_driver_sql(
        "SELECT current_setting('server_version_num')::int / 10000, current_setting('server_encoding'),"
        " current_database()"
    ).one()
    if version < OLDEST:
        raise UnsuitableDatabase(
            f"the server of database.url is PostgreSQL {version}, and {OLDEST} or later is needed: upgrade it"
        )
    if encoding != "UTF8":
        raise UnsuitableDatabase(
            f"the encoding of database {name} is {encoding}, and UTF8 is needed: name one in database.url that was "
            "made with CREATE DATABASE ... TEMPLATE template0 ENCODING 'UTF8', as `make db_init` makes it"
        )


def wait_until_up(url: str, seconds: float) -> None:
    """Return as soon as the server at `url` accepts a connection. Raises its last error after `seconds`."""
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args={"connect_timeout": 3})
    deadline = time.monotonic() + seconds
    while True:
        try:
            engine.connect().close()
            return
        except sqlalchemy.exc.OperationalError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


@click.command()
@config_option
def main(settings: Settings) -> None:
    """Upgrade the database and make the first administrator."""
    log.set_up(settings.log.level)
    try:
        migrate(settings)
    except sqlalchemy.exc.OperationalError as error:
        logger.error("the database does not answer: %s", str(error.orig).strip())
        sys.exit(1)
    except UnsuitableDatabase as error:
        logger.error("%s", error)
        sys.exit(2)
    except Exception:
        logger.exception("the database could not be migrated")
        sys.exit(2)


if __name__ == "__main__":
    main()
