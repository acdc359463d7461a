"""A database of one's own: made fit, refused where it cannot hold what is stored, emptied of what is ours alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
import psycopg2.errors
import pytest
from sqlalchemy import make_url

from baselayer.config import ConfigError
from services import database
from services.migrate import __main__ as migration
from shell_service.settings import ROOT, Settings
from tests.database import Server
from tests.stack import write_config


def plain(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def on(url: str, folder: Path) -> Settings:
    return write_config(folder / "config.yaml", folder / "data", database={"url": plain(url)})


def ask(url: str, statement: str) -> list[tuple[object, ...]]:
    with closing(psycopg2.connect(plain(url))) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


@contextmanager
def named(server: Server, name: str, options: str = "", *, make: bool = True) -> Iterator[str]:
    """A database that is not a copy of the template; yields its URL."""
    admin = server.url_of("postgres")
    if make:
        ask(admin, f"CREATE DATABASE {name} TEMPLATE template0 {options}")
    try:
        yield server.url_of(name)
    finally:
        ask(admin, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def ascii_url(server: Server) -> Iterator[str]:
    """An empty database of another encoding."""
    ((version,),) = ask(server.url_of("postgres"), "SELECT current_setting('server_version_num')::int")
    provider = "LOCALE_PROVIDER libc" if version >= 150_000 else ""
    with named(server, "own_ascii", f"ENCODING 'SQL_ASCII' {provider} LOCALE 'C'") as url:
        yield url


def program(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", words[0], "--config", str(folder / "config.yaml"), *words[1:]],
        cwd=ROOT, text=True, capture_output=True, timeout=60, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


def test_another_encoding_is_refused_in_a_line(ascii_url: str, tmp_path: Path) -> None:
    on(ascii_url, tmp_path)
    expected = "the encoding of database own_ascii is SQL_ASCII, and UTF8 is needed"
    checked = program(tmp_path, "services.manage", "db_init")
    assert (checked.returncode, checked.stdout, checked.stderr.count("\n")) == (1, "", 1)
    assert expected in checked.stderr
    migrated = program(tmp_path, "services.migrate")
    assert (migrated.returncode, migrated.stderr.count("\n")) == (2, 1), "2: no use in trying again"
    assert expected in migrated.stderr
    assert ask(ascii_url, "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace") == []


def test_an_old_server_is_refused(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "OLDEST", 99)
    with named(server, "own_old") as url:
        settings = on(url, tmp_path)
        for work in (lambda: database.initialise(settings, print), lambda: migration.migrate(settings)):
            with pytest.raises(migration.UnsuitableDatabase, match=r"is PostgreSQL \d+, and 99 or later is needed"):
                work()


def test_db_init_makes_it_whatever_template1_is(server: Server, tmp_path: Path) -> None:
    with named(server, "own_made", make=False) as url, closing(psycopg2.connect(plain(server.url_of("template1")))):
        said: list[str] = []
        database.initialise(on(url, tmp_path), said.append)
        assert said == ["[check] database own_made: made"]
        assert ask(url, "SHOW server_encoding") == [("UTF8",)]


def test_db_clear_removes_what_is_ours_and_nothing_else(server: Server, tmp_path: Path) -> None:
    ours = (
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        " UNION SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
    )
    with named(server, "own_cleared") as url:
        settings = on(url, tmp_path)
        ask(url, "CREATE TABLE theirs AS SELECT 1 AS one")
        database.migrate_now(settings, print)
        first = settings.tokens_file.read_text()
        assert len(ask(url, ours)) > 20
        for folder in (settings.output_dir, settings.upload_dir):
            (folder / "x").mkdir(parents=True)
        asked = program(tmp_path, "services.manage", "db_clear")
        assert asked.returncode != 0
        assert "Delete every job, user and token of database own_cleared on " in asked.stdout
        assert settings.tokens_file.exists()
        done = program(tmp_path, "services.manage", "db_clear", "--yes")
        assert done.returncode == 0, done.stderr
        assert ask(url, ours) == [("theirs",)]
        assert not (settings.output_dir.exists() or settings.upload_dir.exists())
        assert not settings.tokens_file.exists()
        database.migrate_now(settings, print)
        assert settings.tokens_file.read_text() != first


@contextmanager
def pair(server: Server, number: int) -> Iterator[tuple[str, str]]:
    """URLs of two roles, that are not there yet, on a database that is not there either; with awkward passwords."""
    admin = server.url_of("postgres")
    if ask(admin, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") != [(True,)]:
        pytest.skip("the role of TEST_DATABASE_URL may not make roles")
    names = f"own_owner_{number}", f"own_service_{number}"
    with named(server, f"own_pair_{number}", make=False) as url:
        owner, service = (make_url(url).set(username=name, password=f"it's 100%{name}") for name in names)
        try:
            yield owner.render_as_string(hide_password=False), service.render_as_string(hide_password=False)
        finally:
            ask(admin, f"DROP DATABASE IF EXISTS own_pair_{number} WITH (FORCE)")
            for name in names:
                ask(admin, f"DROP ROLE IF EXISTS {name}")


def on_pair(owner: str, service: str, folder: Path) -> Settings:
    urls = {"url": plain(service), "owner_url": plain(owner)}
    return write_config(folder / "config.yaml", folder / "data", database=urls)


_OWNERS = "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relname IN ('audit', 'audit_seal')"
_PRETENCE = "only triggers keep"


def test_db_init_makes_two_roles_of_which_one_only_adds_to_the_log(server: Server, tmp_path: Path) -> None:
    with pair(server, 1) as (owner, service):
        settings = on_pair(owner, service, tmp_path)
        refused = program(tmp_path, "services.manage", "db_init")
        assert refused.returncode == 1
        for line in ("CREATE ROLE own_owner_1 ", "CREATE ROLE own_service_1 ", "GRANT own_service_1 TO own_owner_1;",
                     "CREATE DATABASE own_pair_1 OWNER own_owner_1 "):  # fmt: skip
            assert line in refused.stderr
        made = program(tmp_path, "services.manage", "db_init", "--admin-url", plain(server.url_of("postgres")))
        assert (made.returncode, made.stdout) == (0, "[check] database own_pair_1: made\n"), made.stderr
        assert "is there" in program(tmp_path, "services.manage", "db_init").stdout
        migrated = program(tmp_path, "services.manage", "db_migrate")
        assert migrated.returncode == 0 and _PRETENCE not in migrated.stderr, migrated.stderr
        assert settings.tokens_file.exists()
        assert ask(service, _OWNERS) == [("own_owner_1",)]
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            ask(service, "ALTER TABLE audit DISABLE TRIGGER ALL")
        verified = program(tmp_path, "services.manage", "audit_verify")
        assert verified.returncode == 0 and "the log is as it was" in verified.stdout
        assert _PRETENCE not in verified.stdout
        assert program(tmp_path, "services.manage", "db_clear", "--yes").returncode == 0
        assert ask(service, _OWNERS) == []


def test_a_database_of_one_role_gets_another_as_its_owner(server: Server, tmp_path: Path) -> None:
    with pair(server, 2) as (owner, service):
        admin = ["--admin-url", plain(server.url_of("postgres"))]
        on(service, tmp_path)
        assert program(tmp_path, "services.manage", "db_init", *admin).returncode == 0
        migrated = program(tmp_path, "services.manage", "db_migrate")
        assert migrated.returncode == 0 and f"{_PRETENCE} the audit log as it is" in migrated.stderr
        verified = program(tmp_path, "services.manage", "audit_verify")
        assert verified.returncode == 0 and f"{_PRETENCE} it as it is" in verified.stdout
        before = ask(service, "SELECT * FROM audit ORDER BY id")
        assert len(before) > 1

        password_file = tmp_path / "pgpass"
        password_file.write_text(f"*:*:*:own_owner_2:{make_url(owner).password}\n")
        password_file.chmod(0o600)
        ask(admin[1], f"CREATE ROLE own_owner_2 LOGIN PASSWORD $${make_url(owner).password}$$")
        hidden = make_url(owner)._replace(password=None).update_query_dict({"passfile": str(password_file)})
        on_pair(hidden.render_as_string(), service, tmp_path)
        refused = program(tmp_path, "services.manage", "db_migrate")
        assert (
            refused.returncode == 1
            and "own_owner_2 of database.owner_url does not own the schema public" in refused.stderr
        )
        made = program(tmp_path, "services.manage", "db_init", *admin)
        assert made.returncode == 0, made.stderr
        migrated = program(tmp_path, "services.manage", "db_migrate")
        assert migrated.returncode == 0 and _PRETENCE not in migrated.stderr, migrated.stderr
        assert ask(service, _OWNERS) == [("own_owner_2",)]
        assert ask(service, "SELECT * FROM audit ORDER BY id") == before


def test_an_owner_without_what_it_needs_is_told(server: Server, tmp_path: Path) -> None:
    with pair(server, 3) as (owner, service), named(server, "own_other") as other:
        admin = plain(server.url_of("postgres"))
        on_pair(owner, service, tmp_path)
        assert program(tmp_path, "services.manage", "db_init", "--admin-url", admin).returncode == 0
        ask(admin, "REVOKE own_service_3 FROM own_owner_3")
        told = program(tmp_path, "services.migrate")
        assert told.returncode == 2 and 'GRANT "own_service_3" TO "own_owner_3"' in told.stderr
        assert "Traceback" not in told.stderr
        told = program(tmp_path, "services.manage", "db_migrate")
        assert told.returncode == 1 and "Traceback" not in told.stderr
        checked = program(tmp_path, "services.manage", "db_init")
        assert checked.returncode == 1 and "own_service_3 is not granted to own_owner_3" in checked.stderr
        elsewhere = make_url(owner).set(database=make_url(other).database).render_as_string(hide_password=False)
        on_pair(elsewhere, service, tmp_path)
        told = program(tmp_path, "services.migrate")
        assert told.returncode == 2 and "lead to different databases" in told.stderr


def test_the_embedded_one_has_an_owner_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"database\.owner_url is for a server of yours"):
        write_config(tmp_path / "config.yaml", tmp_path / "data", database={"owner_url": "postgresql://x@/y"})


@pytest.mark.parametrize("verb", ["db_migrate", "load_demo_data", "db_clear --yes", "db_shell"])
def test_a_server_that_is_away_is_said_in_a_sentence(tmp_path: Path, verb: str) -> None:
    on(f"postgresql://somebody@/own?host={tmp_path}", tmp_path)
    refused = program(tmp_path, "services.manage", *verb.split())
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: cannot use database own on the local socket:5432: ")
    assert "make db_init" in refused.stderr
