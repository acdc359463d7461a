"""A real PostgreSQL for tests, and databases in it that are copies of a migrated template."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import sqlalchemy
from sqlalchemy import Engine, NullPool, make_url, text
from sqlalchemy.orm import Session

from baselayer.postgres import Cluster
from baselayer.privilege import Account
from shell_service import migrations
from shell_service.settings import load
from tests.waiting import eventually

P = ParamSpec("P")
R = TypeVar("R")

# Killed processes lose nothing that the kernel has; only the loss of a whole host would, and no test plays that.
_FAST = ["-c", "fsync=off", "-c", "log_statement=none", "-c", "deadlock_timeout=200ms"]
_MEMORY, _ROOM = "/dev/shm", 4 << 30  # bytes


def _memory() -> str | None:
    """A folder in memory, if it has room: each test's database is hundreds of files, and a third as long in making."""
    try:
        return _MEMORY if shutil.disk_usage(_MEMORY).free > _ROOM else None
    except OSError:
        return None


class Server:
    """A server that runs, and in it databases that are copies of a migrated template, for as long as the block."""

    def __init__(self, url: str) -> None:
        """`url` is that of a role which may create databases."""
        self._url = make_url(url).set(drivername="postgresql+psycopg2")
        self._names = (f"test_{os.getpid()}_{number}" for number in itertools.count())
        self._template = next(self._names)

    def __enter__(self) -> Self:
        with self._admin() as connection:
            connection.execute(text(f"CREATE DATABASE {self._template} TEMPLATE template0 ENCODING 'UTF8'"))
        engine = sqlalchemy.create_engine(self.url_of(self._template), poolclass=NullPool)
        with engine.connect() as connection:
            migrations.upgrade(connection)
        return self

    def __exit__(self, *_: object) -> None:
        self._drop(self._template)

    def url_of(self, database: str) -> str:
        """The address of one of its databases."""
        return self._url.set(database=database).render_as_string(hide_password=False)

    @contextmanager
    def database(self, template: str = "") -> Iterator[str]:
        """A database of its own, a copy of the migrated one or of `template`; yields its URL."""
        name = next(self._names)
        with self._admin() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template or self._template}"))
        try:
            yield self.url_of(name)
        finally:
            self._drop(name)

    def _drop(self, name: str) -> None:
        with self._admin() as connection:
            connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))

    @contextmanager
    def _admin(self) -> Iterator[sqlalchemy.Connection]:
        engine = sqlalchemy.create_engine(self.url_of("postgres"), isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            yield connection


class EmbeddedServer(Server):
    """A server in a folder of its own, that can be stopped, killed and started again."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="shs-pg-", dir=_memory())).resolve()
        self.folder.chmod(0o711 if os.geteuid() == 0 else 0o700)  # as root the server's account passes through
        self.cluster = Cluster(
            name="shell_service",
            data=self.folder / "data",
            sockets=self.folder / "sockets",
            password_file=self.folder / "secrets" / "password",
            account=Account(199_998, 199_998) if os.geteuid() == 0 else None,
            clients=load().account,
        )
        self.cluster.create()
        super().__init__(self.cluster.url)
        #: What its process does first.
        self.enter: Callable[[], None] = lambda: None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
            return super().__enter__()
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        argv = [*self.cluster.argv(200, 64 << 20), *_FAST]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                argv, env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}, cwd="/", stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True, preexec_fn=self._enter,
            )  # fmt: skip
        eventually(self.answers, 30)

    def _enter(self) -> None:
        self.enter()
        self.cluster.enter()
        ctypes.CDLL(None).prctl(1, signal.SIGQUIT, 0, 0, 0)  # PR_SET_PDEATHSIG: it ends with the tests

    def answers(self) -> bool:
        """Whether statements are executed now."""
        try:
            with self._admin() as connection:
                return bool(connection.scalar(text("SELECT true")))
        except sqlalchemy.exc.OperationalError:
            return False

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT is PostgreSQL's fast shutdown, SIGQUIT the immediate one, that needs recovery."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(30)


class Transactions:
    """Calls functions over sessions, each call one transaction, as `baselayer.database.Database.run` does."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __call__(self, function: Callable[Concatenate[Session, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        with Session(self.engine) as session:
            result = function(session, *args, **kwargs)
            session.commit()
            return result

    def sql(self, statement: str, **values: Any) -> list[Any]:
        """Execute one statement; returns its rows."""
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return list(result) if result.returns_rows else []

    def scalar(self, statement: str, **values: Any) -> Any:
        """The first column of the first row."""
        return self.sql(statement, **values)[0][0]


MISPLACED = """
SELECT j.id, j.status FROM job j WHERE (j.status IS NOT NULL)::int
  + (SELECT count(*) FROM ready_job q WHERE q.job_id = j.id)
  + (SELECT count(*) FROM deferred_job q WHERE q.job_id = j.id)
  + (SELECT count(*) FROM running_job q WHERE q.job_id = j.id) <> 1
UNION ALL
SELECT q.job_id, 'no such job' FROM (SELECT job_id FROM ready_job UNION ALL SELECT job_id FROM deferred_job
  UNION ALL SELECT job_id FROM running_job) q WHERE NOT EXISTS (SELECT FROM job j WHERE j.id = q.job_id)
"""

# What the database saw: every claim, every start of a script, every claim given back as its script never began, and
# every final state, in a table nobody else writes: by its owner, whatever role the change is of.
_WITNESS = """
CREATE TABLE witness (number bigint GENERATED ALWAYS AS IDENTITY, job_id uuid, fence bigint, what text);
CREATE FUNCTION witness_running() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
  IF TG_OP = 'INSERT' THEN INSERT INTO witness (job_id, fence, what) VALUES (NEW.job_id, NEW.fence, 'claimed');
  ELSIF TG_OP = 'DELETE' THEN
    INSERT INTO witness (job_id, fence, what) SELECT job_id, OLD.fence, 'given back' FROM ready_job
    WHERE job_id = OLD.job_id;
  ELSIF OLD.started_at IS NULL AND NEW.started_at IS NOT NULL THEN
    INSERT INTO witness (job_id, fence, what) VALUES (NEW.job_id, NEW.fence, 'started');
  END IF;
  RETURN NULL; END $$;
CREATE TRIGGER witness_running AFTER INSERT OR UPDATE OR DELETE ON running_job
  FOR EACH ROW EXECUTE FUNCTION witness_running();
CREATE FUNCTION witness_job() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
  IF OLD.status IS DISTINCT FROM NEW.status THEN
    INSERT INTO witness (job_id, what) VALUES (NEW.id, coalesce(NEW.status, 'undone'));
  END IF;
  RETURN NULL; END $$;
CREATE TRIGGER witness_job AFTER UPDATE ON job FOR EACH ROW EXECUTE FUNCTION witness_job();
"""


def install_witness(transact: Transactions) -> None:
    """Let the database note what happens to each job from now on."""
    with transact.engine.begin() as connection:
        connection.exec_driver_sql(_WITNESS)


def assert_consistent(transact: Transactions) -> None:
    """Each job stands in exactly one place."""
    assert transact.sql(MISPLACED) == []


def assert_truthful(transact: Transactions) -> None:
    """What holds when all is settled: one final state each, written once; one start at most where that was promised."""
    assert_consistent(transact)
    assert transact.sql("SELECT id FROM job WHERE status IS NULL") == []
    finals = "SELECT job_id, array_agg(what) FROM witness WHERE fence IS NULL GROUP BY 1 HAVING count(*) <> 1"
    assert transact.sql(finals) == []
    assert transact.scalar("SELECT count(*) FROM witness WHERE fence IS NULL") == transact.scalar(
        "SELECT count(*) FROM job"
    )
    starts = (
        "SELECT w.job_id, count(*) FROM witness w JOIN job j ON j.id = w.job_id WHERE w.what = 'started'"
        " AND NOT EXISTS (SELECT FROM witness b WHERE b.fence = w.fence AND b.what = 'given back')"
        " AND j.on_lost = 'fail' AND j.retries = 0 GROUP BY 1 HAVING count(*) > 1"
    )
    assert transact.sql(starts) == []
