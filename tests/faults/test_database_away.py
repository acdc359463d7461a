"""PostgreSQL restarted, killed, away, cut off: no job is killed for it, no result is lost, nothing runs twice."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from shell_service import queue
from tests.database import EmbeddedServer, assert_truthful
from tests.factories import add_jobs
from tests.faults.conftest import QUICK
from tests.faults.proxy import Cut
from tests.services import Service, Site, processes
from tests.waiting import eventually


@pytest.fixture(scope="module")
def postgres() -> Iterator[EmbeddedServer]:
    """A server for the tests of this module, to be stopped and killed."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture
def site(postgres: EmbeddedServer) -> Iterator[Site]:
    """A site with runner and scheduler, on a server that may go away for longer than a runner may be silent."""
    with (
        postgres.database() as url,
        Site(url, runner={**QUICK, "slots": 16}, jobs={"kill_grace": 0.5}, scheduler={"tick_seconds": 0.1}) as site,
    ):
        yield site
        assert_truthful(site.transact)


def begun(site: Site, job_ids: list[uuid.UUID]) -> bool:
    return all(site.output_path(job_id, 1, "stdout").exists() for job_id in job_ids)


def broken(connection: sqlalchemy.Connection) -> bool:
    try:
        connection.execute(sqlalchemy.text("SELECT 1"))
    except sqlalchemy.exc.DBAPIError:
        return True
    return False


def alive(*services: Service) -> None:
    for service in services:
        assert service.process.poll() is None, service.log()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL], ids=["fast", "immediate", "killed"])
def test_a_restart_under_load(site: Site, postgres: EmbeddedServer, how: signal.Signals) -> None:
    runner, scheduler = site.start_runner(), site.start("scheduler")
    long = [site.submit("echo begun; sleep 1.5; exit 3") for _ in range(4)]
    many = site.transact(add_jobs, site.user, 150, code="echo hello")
    eventually(lambda: begun(site, long))
    if how == signal.SIGKILL:
        backend = site.transact.scalar(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() LIMIT 1"
        )
        with site.transact.engine.connect() as other:
            os.kill(backend, signal.SIGKILL)  # all others end, and the server recovers
            eventually(lambda: broken(other))  # until then it answers as before
        eventually(postgres.answers)
    else:
        postgres.stop(how)
        postgres.start()
    site.all_final(10)  # a connection that broke is not waited for until its time is over
    for job_id in long:
        job = site.job(job_id)
        assert (job.status, job.return_code, job.attempt) == ("FAILED", 3, 1)
    ends = [site.job(job_id) for job_id in many]
    assert {(job.status, job.attempt) for job in ends} == {("COMPLETED", 1)}
    assert all(site.output(job) == b"hello\n" for job in ends)
    alive(runner, scheduler)


def test_away_for_longer_than_a_runner_may_be_silent(site: Site, postgres: EmbeddedServer) -> None:
    runner, scheduler = site.start_runner(), site.start("scheduler")
    short = [site.submit("echo begun; sleep 0.5; echo ended; exit 4") for _ in range(3)]
    long = [site.submit("echo begun; sleep 7; echo ended; exit 5", on_lost="requeue") for _ in range(3)]
    eventually(lambda: begun(site, short + long))
    postgres.stop()
    down = time.monotonic()
    paths = [site.output_path(job_id, 1, "stdout") for job_id in short]
    eventually(lambda: all(path.read_bytes().endswith(b"ended\n") for path in paths))  # they go on all the same
    eventually(lambda: time.monotonic() - down > 3 * 1.5, 10)
    alive(runner, scheduler)
    assert len(processes("sleep\0" + "7")) >= 3
    postgres.start()
    for job_ids, code in ((short, 4), (long, 5)):
        for job_id in job_ids:
            job = site.final(job_id)
            assert (job.status, job.return_code, job.attempt) == ("FAILED", code, 1)
            assert site.output(job) == b"begun\nended\n"
    assert site.run("echo on").status == "COMPLETED"
    alive(runner, scheduler)


def test_hanging_for_longer_than_a_runner_may_be_silent(site: Site, postgres: EmbeddedServer) -> None:
    """Not gone, but silent: when it goes on, everybody gets his full time again."""
    runner, scheduler = site.start_runner(), site.start("scheduler")
    job_id = site.submit("echo begun; sleep 5; exit 6")
    eventually(lambda: begun(site, [job_id]))
    assert postgres._process is not None
    pids = [postgres._process.pid, *_children(postgres._process.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    stopped = time.monotonic()
    eventually(lambda: time.monotonic() - stopped > 2 * 1.5, 10)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    job = site.final(job_id)
    assert (job.status, job.return_code) == ("FAILED", 6)
    alive(runner, scheduler)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_runner_is_killed_while_it_is_away(site: Site, postgres: EmbeddedServer) -> None:
    """What it had in its journal by then is told by its successor."""
    runner = site.start_runner()
    ended, going = site.submit("echo begun; sleep 0.5; echo ended; exit 4"), site.submit("echo begun; sleep 60")
    eventually(lambda: begun(site, [ended, going]))
    postgres.stop()
    journal = site.settings.data_dir / "runner" / "runner_00" / "journal"
    eventually(lambda: b'"result"' in journal.read_bytes())
    runner.kill()
    site.start("runner")
    eventually(lambda: not processes("sleep\x0060"), 5)
    postgres.start()
    job = site.final(ended)
    assert (job.status, job.return_code, site.output(job)) == ("FAILED", 4, b"begun\nended\n")
    assert site.final(going).status == "NODE_FAIL"


def test_a_cancel_survives_a_restart(site: Site, postgres: EmbeddedServer) -> None:
    site.start_runner()
    job_id = site.submit("echo begun; sleep 60")
    eventually(lambda: begun(site, [job_id]))
    site.transact(queue.cancel, [job_id], "alice")
    postgres.stop(signal.SIGQUIT)
    postgres.start()
    assert site.final(job_id).status == "CANCELLED"


def test_the_answer_to_a_claim_is_lost(postgres: EmbeddedServer, tmp_path: Path) -> None:
    with postgres.database() as url:
        wire = Cut(url, tmp_path / "wire", b"claim_jobs")
        with Site(url, runner=QUICK, database={"url": wire.url}) as site:
            runner = site.start("runner")
            job_id = site.submit("echo once; exit 2")
            job = site.final(job_id)
            assert wire.done.is_set()
            assert (job.status, job.return_code, job.attempt, site.output(job)) == ("FAILED", 2, 1, b"once\n")
            alive(runner)
            assert_truthful(site.transact)
        wire.close()


@pytest.mark.parametrize("mark", [b"start_jobs(", b"finish_jobs("], ids=["start", "end"])
def test_the_answer_to_a_report_is_lost(postgres: EmbeddedServer, tmp_path: Path, mark: bytes) -> None:
    with postgres.database() as url:
        wire = Cut(url, tmp_path / "wire", mark)
        with Site(url, runner=QUICK, database={"url": wire.url}) as site:
            runner = site.start("runner")
            job = site.run("echo once; exit 2")
            assert wire.done.is_set()
            assert (job.status, job.return_code, job.attempt, site.output(job)) == ("FAILED", 2, 1, b"once\n")
            alive(runner)
            assert_truthful(site.transact)
        wire.close()
