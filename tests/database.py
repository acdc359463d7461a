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
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy
from sqlalchemy import Engine, NullPool, text
from sqlalchemy.orm import Session

from baselayer.postgres import Cluster
from baselayer.privilege import Account
from shell_service import migrations
from tests.waiting import eventually

P = ParamSpec("P")
R = TypeVar("R")

_TEMPLATE = "migrated"
# Killed processes lose nothing that the kernel has; only the loss of a whole host would, and no test plays that.
_FAST = ["-c", "fsync=off", "-c", "log_statement=none", "-c", "deadlock_timeout=200ms"]


class Server:
    """An embedded server in a folder of its own, that can be stopped, killed and started again."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="shs-pg-")).resolve()
        self.folder.chmod(0o711 if os.geteuid() == 0 else 0o700)  # as root the server's account passes through
        self.cluster = Cluster(
            name="shell_service",
            data=self.folder / "data",
            sockets=self.folder / "sockets",
            password_file=self.folder / "secrets" / "password",
            account=Account(199_998, 199_998) if os.geteuid() == 0 else None,
        )
        self.cluster.create()
        self._numbers = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None

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

    def remove(self) -> None:
        """Stop it, and delete everything."""
        if self._process is not None and self._process.poll() is None:
            self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def _admin(self, database: str = "postgres") -> Iterator[sqlalchemy.Connection]:
        engine = sqlalchemy.create_engine(
            self.cluster.url_of(database), isolation_level="AUTOCOMMIT", poolclass=NullPool
        )
        with engine.connect() as connection:
            yield connection

    def make_template(self) -> None:
        """Migrate an empty database once, for all that are made from it."""
        with self._admin() as connection:
            connection.execute(text(f"CREATE DATABASE {_TEMPLATE}"))
        engine = sqlalchemy.create_engine(self.cluster.url_of(_TEMPLATE), poolclass=NullPool)
        with engine.connect() as connection:
            migrations.upgrade(connection)

    @contextmanager
    def database(self, template: str = _TEMPLATE) -> Iterator[str]:
        """A database of its own, a copy of the template, for as long as the block; yields its URL."""
        name = f"test_{next(self._numbers)}"
        with self._admin() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
        try:
            yield self.cluster.url_of(name)
        finally:
            with self._admin() as connection:
                connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


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

# What the database saw: every claim, every start of a script, and every final state, in a table nobody else writes.
_WITNESS = """
CREATE TABLE witness (number bigint GENERATED ALWAYS AS IDENTITY, job_id uuid, fence bigint, what text);
CREATE FUNCTION witness_running() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF TG_OP = 'INSERT' THEN INSERT INTO witness (job_id, fence, what) VALUES (NEW.job_id, NEW.fence, 'claimed');
  ELSIF OLD.started_at IS NULL AND NEW.started_at IS NOT NULL THEN
    INSERT INTO witness (job_id, fence, what) VALUES (NEW.job_id, NEW.fence, 'started');
  END IF;
  RETURN NULL; END $$;
CREATE TRIGGER witness_running AFTER INSERT OR UPDATE ON running_job FOR EACH ROW EXECUTE FUNCTION witness_running();
CREATE FUNCTION witness_job() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
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
        " AND j.on_lost = 'fail' AND j.retries = 0 GROUP BY 1 HAVING count(*) > 1"
    )
    assert transact.sql(starts) == []
