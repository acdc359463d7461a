"""The role that the services log in with adds to the audit log, and no statement of its changes it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import alembic.command
import psycopg2
import psycopg2.errors
import pytest
import sqlalchemy
from sqlalchemy import NullPool, make_url
from sqlalchemy.orm import Session

from shell_service import audit, migrations, seals
from shell_service.audit import Entry
from shell_service.migrations import ownership
from shell_service.scheduler import _vacuum
from tests.database import Server, Transactions

_numbers = itertools.count()


@dataclass(frozen=True)
class Roles:
    """Two roles on the server, without rights of their own: who owns, and who works."""

    server: Server
    owner: str
    service: str

    def url(self, role: str, database: str) -> str:
        """How `role` logs in; its password is its name."""
        return make_url(self.server.url_of(database)).set(username=role, password=role).render_as_string(False)

    def sql(self, role: str, database: str, statement: str) -> list[Any]:
        """Execute as `role`, or as who may do everything where it is empty; returns the rows."""
        url = self.url(role, database) if role else self.server.url_of(database)
        with closing(psycopg2.connect(url.replace("+psycopg2", ""))) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def migrate(self, database: str) -> None:
        """As the owner, for the service."""
        migrate(self.url(self.owner, database), self.service)


def migrate(url: str, service: str | None) -> None:
    with sqlalchemy.create_engine(url, poolclass=NullPool).connect() as connection:
        migrations.upgrade(connection, service)


@pytest.fixture(scope="module")
def roles(server: Server) -> Iterator[Roles]:
    number = next(_numbers)
    made = Roles(server, f"owner_{number}", f"service_{number}")
    ((may,),) = made.sql("", "postgres", "SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
    if not may:
        pytest.skip("the role of TEST_DATABASE_URL may not make roles")
    for role in (made.owner, made.service):
        made.sql("", "postgres", f"CREATE ROLE {role} LOGIN PASSWORD '{role}'")
    made.sql("", "postgres", f"GRANT {made.service} TO {made.owner}")
    yield made
    made.sql("", "postgres", f"DROP ROLE {made.owner}, {made.service}")


@contextmanager
def empty(roles: Roles, owner: str) -> Iterator[str]:
    """The name of a database without anything in it, that belongs to `owner`."""
    with roles.server.database("template0") as url:
        name = make_url(url).database or ""
        hand_over(roles, name, owner)
        yield name


def hand_over(roles: Roles, database: str, owner: str) -> None:
    """Make database and schema another's, as whoever may."""
    roles.sql("", database, f"ALTER DATABASE {database} OWNER TO {owner}")
    roles.sql("", database, f"ALTER SCHEMA public OWNER TO {owner}; REVOKE CREATE ON SCHEMA public FROM PUBLIC")


@pytest.fixture(scope="module")
def database(roles: Roles) -> Iterator[str]:
    """One that the owner has made and migrated, with a sealed entry."""
    with empty(roles, roles.owner) as name:
        roles.migrate(name)
        engine = sqlalchemy.create_engine(roles.url(roles.service, name), poolclass=NullPool)
        log(Transactions(engine))
        yield name


def log(transact: Transactions) -> None:
    """Write an entry, and seal it."""
    transact(audit.write([Entry("user.change", "somebody", username="alice")]).on)
    marked = transact(seals.mark().on)
    assert marked is not None and transact(seals.seal, marked)


def contents(roles: Roles, database: str) -> list[Any]:
    return [roles.sql("", database, f"SELECT * FROM {table} ORDER BY 1") for table in ownership.APPEND_ONLY]


STATEMENTS = [
    "UPDATE {table} SET at = at", "UPDATE {table} SET at = at WHERE false", "DELETE FROM {table}", "TRUNCATE {table}",
    "DROP TABLE {table}", "ALTER TABLE {table} DISABLE TRIGGER ALL", "ALTER TABLE {table} DISABLE TRIGGER {trigger}",
    "DROP TRIGGER {trigger} ON {table}", "ALTER TRIGGER {trigger} ON {table} RENAME TO another",
    "ALTER TABLE {table} OWNER TO {service}", "ALTER TABLE {table} RENAME TO another", "ALTER TABLE {table} ADD x int",
    "ALTER TABLE {table} SET SCHEMA pg_catalog", "BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE",
    "CREATE RULE nothing AS ON INSERT TO {table} DO INSTEAD NOTHING", "CREATE INDEX ON {table} (at)",
    "CREATE TRIGGER mine BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "GRANT ALL ON {table} TO {service}; DELETE FROM {table}", "SELECT 1 FROM {table} FOR UPDATE",
]  # fmt: skip
OTHERS = [
    "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    "ALTER FUNCTION refuse_change() OWNER TO {service}", "DROP FUNCTION refuse_change() CASCADE",
    "ALTER FUNCTION refuse_change() SET search_path = pg_temp", "ALTER FUNCTION audit_digest RENAME TO another",
    "DROP FUNCTION write_audit", "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "ALTER SEQUENCE audit_id_seq RESTART", "SELECT setval('audit_id_seq', 1)",
    "UPDATE alembic_version SET version_num = '0001'", "DROP TABLE alembic_version",
    "SET session_replication_role = replica", "SET ROLE {owner}", "SET SESSION AUTHORIZATION {owner}",
    "GRANT {owner} TO {service}", "ALTER ROLE {service} SUPERUSER", "ALTER ROLE {owner} PASSWORD 'x'",
    "DROP SCHEMA public CASCADE", "ALTER SCHEMA public RENAME TO another", "ALTER SCHEMA public OWNER TO {service}",
    "CREATE SCHEMA another", "ALTER DATABASE {database} OWNER TO {service}", "DROP OWNED BY {owner}",
    "REASSIGN OWNED BY {owner} TO {service}", "CREATE EVENT TRIGGER mine ON ddl_command_end EXECUTE FUNCTION x()",
]  # fmt: skip
ATTEMPTS = [
    *(
        s.replace("{table}", t).replace("{trigger}", f"{t}_append_only")
        for s in STATEMENTS
        for t in ownership.APPEND_ONLY
    ),
    *OTHERS,
]


@pytest.mark.parametrize("statement", ATTEMPTS)
def test_is_refused(roles: Roles, database: str, statement: str) -> None:
    before = contents(roles, database)
    statement = statement.format(owner=roles.owner, service=roles.service, database=database)
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        roles.sql(roles.service, database, statement)
    assert contents(roles, database) == before


def test_what_services_do_they_can(roles: Roles, database: str, caplog: pytest.LogCaptureFixture) -> None:
    engine = sqlalchemy.create_engine(roles.url(roles.service, database), poolclass=NullPool)
    transact = Transactions(engine)
    log(transact)
    assert {found.problem for found in transact(lambda session: list(seals.verify(session)))} == {None}
    with engine.connect() as connection:
        assert migrations.is_current(connection)
        assert ownership.gap(connection) is None
    caplog.set_level("INFO", "sqlalchemy.dialects.postgresql")  # where notices go
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        _vacuum(Session(connection))
    assert caplog.messages == [], "a table of another's is passed over with a warning"


def owners(roles: Roles, database: str) -> dict[str, str]:
    """To whom each table, index, sequence and function of the schema belongs."""
    return dict(
        roles.sql(
            "", database,
            "SELECT relname, pg_get_userbyid(relowner) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            " UNION SELECT proname, pg_get_userbyid(proowner) FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
        )
    )  # fmt: skip


def test_the_owner_has_what_guards_the_log_and_the_service_the_rest(roles: Roles, database: str) -> None:
    found = owners(roles, database)
    functions = {name for (name,) in roles.sql("", database, "SELECT proname FROM pg_proc JOIN pg_namespace n"
                                               " ON n.oid = pronamespace WHERE nspname = 'public'")}  # fmt: skip
    assert {"refuse_change", "write_audit", "audit_digest"} < functions
    kept = {name for name in found if name.startswith(("audit_", "alembic_version")) or name == "audit"}
    assert {name for name, owner in found.items() if owner == roles.owner} == functions | kept
    assert {owner for name, owner in found.items() if name not in functions | kept} == {roles.service}
    assert {"job", "fence_seq", "ready_job_pkey"} < found.keys()


def test_a_database_that_was_all_the_service_s_comes_out_right(roles: Roles, database: str) -> None:
    with empty(roles, roles.service) as name:
        migrate(roles.url(roles.service, name), None)
        roles.sql(
            "", name, "CREATE TABLE theirs (one int); CREATE FUNCTION theirs() RETURNS int LANGUAGE sql AS 'SELECT 1'"
        )
        engine = sqlalchemy.create_engine(roles.url(roles.service, name), poolclass=NullPool)
        log(Transactions(engine))
        before = contents(roles, name)
        others = {"theirs": owners(roles, name)["theirs"]}
        with engine.connect() as connection:
            assert str(ownership.gap(connection)).startswith("owns, or can act for the owner of, the table audit, the ")
        roles.migrate(name)  # the log is no longer the service's, but the database still is
        with engine.connect() as connection:
            said = ownership.gap(connection)
            assert said == f"owns, or can act for the owner of, the schema public, the database {name}"
        hand_over(roles, name, roles.owner)
        for _ in range(2):
            roles.migrate(name)
            assert owners(roles, name) == {**owners(roles, database), **others}
            with engine.connect() as connection:
                assert ownership.gap(connection) is None
                assert migrations.is_current(connection)
        assert contents(roles, name) == before
        for statement in ATTEMPTS[:6]:
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                roles.sql(roles.service, name, statement)
        log(Transactions(engine))


def test_an_older_schema_is_upgraded_by_the_owner(roles: Roles) -> None:
    """Over tables that are the service's."""
    with empty(roles, roles.owner) as name:
        roles.migrate(name)
        with sqlalchemy.create_engine(roles.url(roles.owner, name), poolclass=NullPool).connect() as connection:
            alembic.command.downgrade(migrations.alembic_config(connection), "0003")
            connection.commit()
        roles.migrate(name)
        with sqlalchemy.create_engine(roles.url(roles.service, name), poolclass=NullPool).connect() as connection:
            assert migrations.is_current(connection) and ownership.gap(connection) is None
        with sqlalchemy.create_engine(roles.url(roles.owner, name), poolclass=NullPool).connect() as connection:
            migrations.remove(connection)
        assert owners(roles, name) == {}


def test_an_owner_who_may_not_act_for_the_service_says_so(roles: Roles) -> None:
    with empty(roles, roles.service) as name:
        roles.sql("", name, f"REVOKE {roles.service} FROM {roles.owner}")
        with pytest.raises(ownership.OwnershipError, match="does not own the schema public"):
            roles.migrate(name)
        hand_over(roles, name, roles.owner)
        try:
            with pytest.raises(ownership.OwnershipError, match=f'GRANT "{roles.service}" TO "{roles.owner}"'):
                roles.migrate(name)
        finally:
            roles.sql("", name, f"GRANT {roles.service} TO {roles.owner}")
        assert owners(roles, name) == {}


@pytest.mark.parametrize(
    ("given", "taken", "said"),
    [
        ("GRANT UPDATE (at) ON audit TO {service}", "REVOKE UPDATE (at) ON audit FROM {service}", "was given rights"),
        ("GRANT TRUNCATE ON audit_seal TO {service}", "", "was given rights"),
        ("ALTER ROLE {service} CREATEROLE", "ALTER ROLE {service} NOCREATEROLE", "may make roles"),
        ("ALTER ROLE {service} SUPERUSER", "ALTER ROLE {service} NOSUPERUSER", "is a superuser"),
        ("ALTER FUNCTION refuse_change() OWNER TO {service}", "", "owns, .*the function refuse_change$"),
    ],
)  # fmt: skip
def test_what_the_role_could_do_is_said(roles: Roles, database: str, given: str, taken: str, said: str) -> None:
    url = roles.url(roles.service, database)
    roles.sql("", database, given.format(service=roles.service))
    try:
        with sqlalchemy.create_engine(url, poolclass=NullPool).connect() as connection:
            assert re.search(said, str(ownership.gap(connection)))
    finally:
        roles.sql("", database, taken.format(service=roles.service) or "SELECT 1")
    roles.migrate(database)
    with sqlalchemy.create_engine(url, poolclass=NullPool).connect() as connection:
        assert ownership.gap(connection) is None
