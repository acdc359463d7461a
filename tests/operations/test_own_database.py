"""A database of one's own: made fit, refused where it cannot hold what is stored, emptied of what is ours alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import make_url

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
        (settings.output_dir / "job").mkdir(parents=True)
        asked = program(tmp_path, "services.manage", "db_clear")
        assert asked.returncode != 0
        assert "Delete every job, user and token of database own_cleared on " in asked.stdout
        assert settings.tokens_file.exists()
        done = program(tmp_path, "services.manage", "db_clear", "--yes")
        assert done.returncode == 0, done.stderr
        assert ask(url, ours) == [("theirs",)]
        assert not settings.output_dir.exists()
        assert not settings.tokens_file.exists()
        database.migrate_now(settings, print)
        assert settings.tokens_file.read_text() != first


@pytest.mark.parametrize("verb", ["db_migrate", "load_demo_data", "db_clear --yes", "db_shell"])
def test_a_server_that_is_away_is_said_in_a_sentence(tmp_path: Path, verb: str) -> None:
    on(f"postgresql://somebody@/own?host={tmp_path}", tmp_path)
    refused = program(tmp_path, "services.manage", *verb.split())
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: cannot use database own on the local socket:5432: ")
    assert "make db_init" in refused.stderr
