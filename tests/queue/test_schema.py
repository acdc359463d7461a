"""The schema that the migrations make is the one that the models describe."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import alembic.autogenerate
import alembic.command
import alembic.runtime.migration
import sqlalchemy
from sqlalchemy import NullPool

import shell_service.models
from baselayer.models import Base
from shell_service import migrations
from tests.database import Server, Transactions

assert shell_service.models


def test_models_and_migrations_agree(transact: Transactions) -> None:
    with transact.engine.connect() as connection:
        context = alembic.runtime.migration.MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert alembic.autogenerate.compare_metadata(context, Base.metadata) == []
        assert migrations.current(connection) == migrations.HEAD


def test_check_constraints_are_those_of_the_models(transact: Transactions) -> None:
    wanted = {
        str(item.name) for table in Base.metadata.tables.values() for item in table.constraints
        if isinstance(item, sqlalchemy.CheckConstraint)
    }  # fmt: skip
    found = transact.sql(
        "SELECT conname FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace"
    )
    assert {row.conname for row in found} == wanted


def test_one_of_many_migrates(server: Server) -> None:
    with server.database("template0") as url:

        def upgrade(_: int) -> None:
            with sqlalchemy.create_engine(url, poolclass=NullPool).connect() as connection:
                migrations.upgrade(connection)

        with ThreadPoolExecutor(6) as threads:
            list(threads.map(upgrade, range(6)))


def test_the_way_back_leaves_nothing(server: Server) -> None:
    with server.database() as url, sqlalchemy.create_engine(url, poolclass=NullPool).connect() as connection:
        alembic.command.downgrade(migrations.alembic_config(connection), "base")
        connection.commit()
        left = sqlalchemy.inspect(connection).get_table_names()
        assert left == ["alembic_version"]
        migrations.upgrade(connection)
