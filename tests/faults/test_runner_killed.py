"""SIGKILL of the runner at each step of an attempt, and what its successor makes of it."""

from __future__ import annotations

import signal
import uuid
from pathlib import Path
from typing import Any

import pytest

from shell_service import queue
from tests.database import Server, assert_truthful
from tests.faults.conftest import QUICK
from tests.services import Site, processes
from tests.waiting import eventually

# Says who it is, and ends in a way that nobody could guess.
CODE = "echo $0 $$; read -r line; echo $line; exit 7"
PLACES = ("claimed", "held", "started", "journaled", "running", "exited", "result", "reported")


def kill_at(site: Site, place: str, **fields: Any) -> uuid.UUID:
    """A job whose runner was killed when it reached `place`."""
    job_id = site.submit(CODE, stdin="hello\n", **fields)
    runner = site.start("runner", f"runner.{place}=kill")
    assert runner.wait() == -signal.SIGKILL, runner.log()
    return job_id


def starts(site: Site, job_id: uuid.UUID) -> int:
    """How often a start was recorded, those aside of which it was certain later that the script had not begun."""
    found: int = site.transact.scalar(
        "SELECT count(*) FROM witness w WHERE job_id = :id AND what = 'started'"
        " AND NOT EXISTS (SELECT FROM witness b WHERE b.fence = w.fence AND b.what = 'given back')",
        id=job_id,
    )
    return found


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("on_lost", ["fail", "requeue"])
def test_killed_at(site: Site, place: str, on_lost: str) -> None:
    job_id = kill_at(site, place, on_lost=on_lost)
    begun = place not in ("claimed", "held", "started")  # as far as anybody can know
    if place != "held":  # the start is recorded while the sandbox is made: there both may come first
        assert starts(site, job_id) == (place != "claimed")
    killed = site.transact.scalar("SELECT clock_timestamp()")
    site.start_runner()
    if begun and on_lost == "requeue" and place not in ("result", "reported"):
        row = eventually(lambda: site.transact.sql("SELECT attempt FROM deferred_job WHERE job_id = :id", id=job_id))[0]
        assert row.attempt == 1
        site.hurry()
        site.transact(queue.promote)
    job = site.final(job_id)
    if not begun:
        # Never lost: it goes back, and nobody can tell.
        assert (job.status, job.return_code, job.attempt, starts(site, job_id)) == ("FAILED", 7, 1, 1)
        assert job.started_at > killed
    elif place in ("result", "reported"):
        # Its end was known, and is told as it was.
        assert (job.status, job.return_code, job.attempt, starts(site, job_id)) == ("FAILED", 7, 1, 1)
        assert job.stdout_bytes == len(site.output(job))
    elif on_lost == "fail":
        assert (job.status, job.return_code, starts(site, job_id)) == ("NODE_FAIL", None, 1)
        assert "how the script ended is not known" in job.reason
    else:
        assert (job.status, job.return_code, job.attempt, starts(site, job_id)) == ("FAILED", 7, 2, 2)
    if job.status == "FAILED":
        assert site.output(job).endswith(b"hello\n")


@pytest.mark.parametrize("gone", ["journal", "boot"])
def test_killed_before_a_script_began_of_which_the_journal_cannot_tell(site: Site, gone: str) -> None:
    """Rather lost than perhaps started twice."""
    job_id = kill_at(site, "started")
    journal = site.settings.data_dir / "runner" / "runner_00" / "journal"
    if gone == "journal":
        journal.unlink()
    else:  # the host was started anew
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
        assert boot in journal.read_bytes()
        journal.write_bytes(journal.read_bytes().replace(boot, bytes(reversed(boot))))
    site.start_runner()
    job = site.final(job_id)
    assert (job.status, job.return_code, starts(site, job_id)) == ("NODE_FAIL", None, 1)


def test_a_cancel_of_a_script_that_never_began(site: Site) -> None:
    job_id = kill_at(site, "started")
    site.transact(queue.cancel, [job_id], "alice")
    site.start_runner()
    job = site.final(job_id)
    assert (job.status, job.cancelled_by, job.started_at) == ("CANCELLED", "alice", None)


def test_killed_again_and_again_before_a_script_begins(site: Site) -> None:
    job_id = kill_at(site, "started")
    for _ in range(2):
        runner = site.start("runner", "runner.started=kill")
        assert runner.wait() == -signal.SIGKILL, runner.log()
    site.start_runner()
    job = site.final(job_id)
    assert (job.status, job.return_code, job.attempt, starts(site, job_id)) == ("FAILED", 7, 1, 1)


def test_killed_while_many_run(server: Server) -> None:
    mark = "3171.25"
    with server.database() as url, Site(url, runner={**QUICK, "slots": 28}, jobs={"kill_grace": 0.5}) as site:
        ids = [
            site.submit(f"echo begun; sleep {mark}", on_lost="requeue" if number % 2 else "fail", timeout=60.0)
            for number in range(30)  # of which one user may run 24 at once
        ]
        runner = site.start_runner()
        eventually(lambda: len(processes(f"sleep\0{mark}")) == 24, 30)
        runner.kill()
        eventually(lambda: not processes(mark), 3)  # nothing is left within moments, without a successor
        site.transact.sql("UPDATE job SET code = 'echo again'")
        site.start_runner()
        eventually(lambda: site.transact.scalar("SELECT count(*) FROM deferred_job") == 12)
        site.hurry()
        site.transact(queue.promote)
        site.all_final()
        jobs = [site.job(job_id) for job_id in ids]
        assert [job.status for job in jobs[:24]] == ["NODE_FAIL", "COMPLETED"] * 12
        assert [job.attempt for job in jobs[1:24:2]] == [2] * 12
        assert [(job.status, job.attempt) for job in jobs[24:]] == [("COMPLETED", 1)] * 6
        assert_truthful(site.transact)


@pytest.mark.parametrize("on_lost", ["fail", "requeue"])
def test_killed_while_it_ends_a_job_on_its_way_out(server: Server, on_lost: str) -> None:
    with server.database() as url, Site(url, runner={**QUICK, "drain_seconds": 0.1}, jobs={"kill_grace": 0.2}) as site:
        job_id = site.submit("trap '' TERM; echo begun; while :; do sleep 0.05; done", on_lost=on_lost)
        runner = site.start("runner", "runner.result=kill")
        eventually(site.output_path(job_id, 1, "stdout").exists)
        runner.send(signal.SIGTERM)
        assert runner.wait() == -signal.SIGKILL
        site.transact.sql("UPDATE job SET code = 'echo again'")
        site.start_runner()
        if on_lost == "requeue":
            eventually(lambda: site.transact.scalar("SELECT count(*) FROM deferred_job") == 1)
            site.hurry()
            site.transact(queue.promote)
        assert site.final(job_id).status == ("NODE_FAIL" if on_lost == "fail" else "COMPLETED")
        assert_truthful(site.transact)


def test_a_cancel_while_no_runner_is_up(site: Site) -> None:
    job_id = kill_at(site, "claimed")
    site.transact(queue.cancel, [job_id], "alice")
    assert site.job(job_id).status is None  # a claim stands: its runner, or a successor, ends it
    site.start_runner()
    assert site.final(job_id).status == "CANCELLED"
    assert starts(site, job_id) == 0


def test_a_runner_that_never_comes_back(site: Site) -> None:
    never = kill_at(site, "claimed")
    site.transact.sql("UPDATE runner SET name = 'runner_99'")  # so that the next one is no successor
    site.start("scheduler")
    eventually(lambda: site.transact.sql("SELECT FROM ready_job WHERE job_id = :id", id=never), 10)
    assert site.transact.sql("SELECT state FROM runner")[0].state == "gone"
    site.start_runner()
    assert (site.final(never).status, site.job(never).attempt) == ("FAILED", 1)


def test_a_runner_that_stands_still(site: Site) -> None:
    """Its jobs are settled by others; when it goes on, it changes nothing, and ends what it still runs."""
    marks = ("3172.125", "3172.25", "3172.5")
    fail = site.submit(f"echo begun; sleep {marks[0]}")
    requeue = site.submit(f"echo begun; sleep {marks[1]}", on_lost="requeue")
    scheduler = site.start("scheduler")
    runner = site.start_runner()
    eventually(lambda: processes(f"sleep\0{marks[0]}") and processes(f"sleep\0{marks[1]}"))
    late = site.submit("echo begun; sleep 0.7; exit 5")  # ends while its runner stands still
    eventually(site.output_path(late, 1, "stdout").exists)
    runner.send(signal.SIGSTOP)
    try:
        assert {site.final(job_id).status for job_id in (fail, late)} == {"NODE_FAIL"}
        eventually(lambda: site.transact.scalar("SELECT count(*) FROM deferred_job") == 1)
    finally:
        runner.send(signal.SIGCONT)
    site.transact.sql("UPDATE job SET code = 'echo again'")
    eventually(lambda: not processes(marks[0]) and not processes(marks[1]), 10)
    site.hurry()
    assert (site.final(requeue).status, site.job(requeue).attempt) == ("COMPLETED", 2)
    assert {site.job(job_id).status for job_id in (fail, late)} == {"NODE_FAIL"}
    assert site.run("echo on").status == "COMPLETED"
    assert runner.process.poll() is None and scheduler.process.poll() is None


@pytest.mark.parametrize("place", ["held", "started", "journaled"])
def test_a_runner_that_stands_still_before_a_script_begins(site: Site, place: str) -> None:
    """However late it lets a script go, nobody takes its word for anything any more."""
    job_id = site.submit(CODE, stdin="late\n")
    site.start("scheduler")
    runner = site.start("runner", f"runner.{place}=stop")
    eventually(lambda: site.transact.sql("SELECT FROM runner WHERE state = 'gone'"), 15)
    eventually(lambda: not site.transact.sql("SELECT FROM running_job"))
    begun = starts(site, job_id)
    runner.send(signal.SIGCONT)
    job = site.final(job_id)
    assert (job.status, job.attempt) == ("NODE_FAIL", 1) if begun else (job.status, job.return_code) == ("FAILED", 7)
    assert starts(site, job_id) == 1
