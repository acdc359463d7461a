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
from shell_service.migrations import ownership
from shell_service.settings import Settings

logger = logging.getLogger("migrate")
WAIT_SECONDS = 60
_LOCK = 7_102  # advisory lock: one makes the role at a time
OLDEST = 14  # the oldest release of PostgreSQL that the service works with


class UnsuitableDatabase(PostgresError):
    """The server answers, but it is too old, or its database is not as it has to be; the message says what to do."""


def migrate(settings: Settings) -> None:
    """Wait for the database, upgrade its schema, provision; of several that migrate at once, one does it and the
    others wait. Raises `sqlalchemy.exc.OperationalError` when the database does not answer in time, and
    `UnsuitableDatabase` when it cannot hold what the service stores, or not as its owner's and its services'."""
    wait_until_up(settings.owner_url, WAIT_SECONDS)
    admit(settings)
    owner, services = unpooled(settings.owner_url), unpooled(settings.database_url)
    with owner.connect() as connection:
        check(connection)
    service = _service(owner, services)
    with owner.connect() as connection:
        before = migrations.current(connection)
        try:
            migrations.upgrade(connection, service)
        except ownership.OwnershipError as error:
            raise UnsuitableDatabase(str(error)) from error
        logger.info("schema: %s, was %s", migrations.current(connection), before or "empty")
    with services.connect() as connection:
        if gap := ownership.gap(connection):
            logger.warning("only triggers keep the audit log as it is: the role of database.url %s", gap)
    if provision.first_admin(services, settings.tokens_file):
        logger.info("made the first administrator; its token is in %s", settings.tokens_file)


def admit(settings: Settings) -> None:
    """Make the services' role of an embedded server that runs, where it has none yet or has another password."""
    if settings.database.url != "embedded" or answers(settings.database_url):
        return
    with unpooled(settings.owner_url).begin() as connection:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        for statement in settings.cluster.client_statements():
            connection.exec_driver_sql(statement)


def unpooled(url: str | sqlalchemy.URL) -> sqlalchemy.Engine:
    """An engine that keeps no connection."""
    return sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)


def _service(owner: sqlalchemy.Engine, services: sqlalchemy.Engine) -> str | None:
    """The role that the services log in with; None where the owner is the same. Raises `UnsuitableDatabase`."""
    statement = "SELECT current_user, current_database(), current_schema(), pg_postmaster_start_time()"
    with owner.connect() as one, services.connect() as other:
        me, *here = one.exec_driver_sql(statement).one()
        service, *there = other.exec_driver_sql(statement).one()
    if here != there:
        raise UnsuitableDatabase("database.url and database.owner_url lead to different databases: they have to be one")
    return None if service == me else str(service)


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


def answers(url: str) -> bool:
    """Whether the server at `url` lets its role in now."""
    try:
        wait_until_up(url, 0)
    except sqlalchemy.exc.OperationalError:
        return False
    return True


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
