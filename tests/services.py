"""Services on a test's own database and data folder, without router and supervisor: started, killed, started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import sqlalchemy
from sqlalchemy import make_url

from services import layout
from shell_service.output import OutputStore, Stream
from shell_service.settings import ROOT
from tests.database import Transactions, install_witness
from tests.factories import add_jobs, add_user
from tests.stack import write_config
from tests.waiting import eventually

Enter = Callable[[], None]

_FAIL = "SHELL_SERVICE_FAIL"


class Service:
    """One process of a service."""

    def __init__(
        self, name: str, config: Path, log: Path, fail: str = "", number: int = 0, enter: Enter | None = None
    ) -> None:
        """`fail` names a place at which it is to die, as `baselayer.failpoint` has it; `number` is of several
        processes; `enter` is what the new process does first.
        """
        self.name, self._log = name, log
        numbered = ["--process", str(number)] if number else []
        environment = {key: value for key, value in os.environ.items() if key != _FAIL}
        with log.open("ab") as output:
            self._begin = output.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"services.{name}", "--config", str(config), *numbered],
                cwd=ROOT, env={**environment, **({_FAIL: fail} if fail else {})}, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True, preexec_fn=enter,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        """What it has logged."""
        with self._log.open("rb") as file:
            file.seek(self._begin)
            return file.read().decode(errors="replace")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 20.0) -> int:
        """Wait until it has ended; returns its exit status."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {seconds} s:\n{self.log()[-3000:]}") from None

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)


class Site:
    """A database, a data folder, and what runs there. Keyword arguments override sections of the configuration."""

    def __init__(self, url: str, **overrides: Any) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="shs-")).resolve()
        self.folder.chmod(0o711 if os.geteuid() == 0 else 0o700)  # as root jobs have uids of their own
        self.config = self.folder / "config.yaml"
        plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        self.settings = write_config(self.config, self.folder / "data", **{"database": {"url": plain}, **overrides})
        layout.prepare_folders(self.settings)
        self.transact = Transactions(sqlalchemy.create_engine(url, pool_size=5, pool_pre_ping=True))
        self.outputs = OutputStore(self.settings.output_dir)
        self.services: list[Service] = []
        install_witness(self.transact)
        self.user = self.transact(add_user)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for service in self.services:
            service.kill()
        self.transact.engine.dispose()
        if kind is not None:
            for service in self.services:
                print(f"--- {service.name} {service.pid}\n{service.log()[-4000:]}")
        shutil.rmtree(self.folder, ignore_errors=True)
        if not self.settings.socket_dir.is_relative_to(self.folder):
            shutil.rmtree(self.settings.socket_dir, ignore_errors=True)

    def start(self, name: str, fail: str = "", number: int = 0, enter: Enter | None = None) -> Service:
        """Start a service; see `Service`."""
        log = self.folder / f"{name}{number or ''}.log"
        service = Service(name, self.config, log, fail, number, enter)
        self.services.append(service)
        return service

    def start_runner(self, fail: str = "", enter: Enter | None = None) -> Service:
        """Start the runner, and wait until it is entered; one that fails on the way may have ended by then."""
        before = self.transact.sql("SELECT incarnation FROM runner")
        runner = self.start("runner", fail, enter=enter)
        eventually(
            lambda: (
                runner.process.poll() is not None
                or self.transact.sql("SELECT incarnation FROM runner WHERE state = 'live' AND obstacle IS NULL")
                not in (before, [])
            )
        )
        return runner

    def submit(self, code: str = "echo hello", **fields: Any) -> uuid.UUID:
        """Submit a job of the first user."""
        return self.transact(add_jobs, fields.pop("user", self.user), code=code, **fields)[0]

    def job(self, job_id: uuid.UUID) -> Any:
        """A job's row."""
        return self.transact.sql("SELECT * FROM job WHERE id = :id", id=job_id)[0]

    def started(self, job_id: uuid.UUID) -> bool:
        """Whether the job runs, by the database."""
        return bool(
            self.transact.sql("SELECT FROM running_job WHERE job_id = :id AND started_at IS NOT NULL", id=job_id)
        )

    def final(self, job_id: uuid.UUID, seconds: float = 20.0) -> Any:
        """The job's row when it has ended."""
        try:
            eventually(lambda: self.job(job_id).status, seconds)
        except AssertionError:
            where = self.transact.sql("SELECT * FROM running_job WHERE job_id = :id", id=job_id)
            raise AssertionError(f"not final after {seconds} s; running: {where}") from None
        return self.job(job_id)

    def run(self, code: str, seconds: float = 20.0, **fields: Any) -> Any:
        """Submit a job, and wait for its end."""
        return self.final(self.submit(code, **fields), seconds)

    def all_final(self, seconds: float = 30.0) -> None:
        """Wait until every job has ended."""
        eventually(lambda: self.transact.scalar("SELECT count(*) FROM job WHERE status IS NULL") == 0, seconds)

    def hurry(self) -> None:
        """Let the time come for everything that is deferred."""
        self.transact.sql("UPDATE deferred_job SET run_at = clock_timestamp()")

    def output_path(self, job_id: uuid.UUID, attempt: int, stream: Stream) -> Path:
        """Where it is, or would be, what this attempt printed."""
        return Path(self.outputs.path(job_id, attempt, stream))

    def output(self, job: Any, stream: Stream = "stdout", attempt: int | None = None) -> bytes:
        """What a job printed."""
        path = self.output_path(job.id, job.attempt if attempt is None else attempt, stream)
        return path.read_bytes() if path.exists() else b""


def processes(mark: str) -> list[int]:
    """Processes of this host whose command line holds `mark`, our own aside."""
    return [pid for pid, line in _command_lines() if mark.encode() in line and pid != os.getpid()]


def _command_lines() -> Iterable[tuple[int, bytes]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield int(entry.name), (entry / "cmdline").read_bytes()
            except OSError:
                continue  # it has ended


def host() -> str:
    """The name under which runners of this host are entered."""
    return socket.gethostname()
