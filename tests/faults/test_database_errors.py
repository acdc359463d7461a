"""A database that is there, and refuses: whatever it refuses is asked again, and nothing else ends for it."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from shell_service import liveness
from tests.faults.conftest import QUICK, Worker
from tests.services import Site
from tests.waiting import eventually

# What is broken, how it is mended, and what then cannot be done by runner and scheduler.
_REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused'; END $$;
CREATE TRIGGER refuse BEFORE {event} FOR EACH ROW EXECUTE FUNCTION refuse();
"""
_TROUBLES = {
    "claims": (
        "ALTER FUNCTION claim_jobs RENAME TO away",
        "ALTER FUNCTION away RENAME TO claim_jobs",
        ["claiming jobs"],
    ),
    "heartbeats": (
        "ALTER TABLE runner RENAME beat TO away",
        "ALTER TABLE runner RENAME away TO beat",
        ["a heartbeat", "looking for runners that are gone"],
    ),
    "starts": (
        _REFUSE.format(event="UPDATE ON running_job"),
        "DROP FUNCTION refuse CASCADE",
        ["telling the start of job"],
    ),
    "ends": (_REFUSE.format(event="UPDATE ON job"), "DROP FUNCTION refuse CASCADE", ["telling the end of job"]),
    "running jobs": (
        "ALTER TABLE running_job RENAME TO away",
        "ALTER TABLE away RENAME TO running_job",
        ["a heartbeat", "claiming jobs", "telling the end of job"],
    ),
    "due jobs": (
        "ALTER TABLE deferred_job RENAME TO away",
        "ALTER TABLE away RENAME TO deferred_job",
        ["letting jobs become ready"],
    ),
}


@pytest.mark.parametrize("trouble", list(_TROUBLES))
def test_what_is_refused_is_asked_again(site: Site, trouble: str) -> None:
    breaking, mending, failing = _TROUBLES[trouble]
    runner, scheduler = site.start_runner(), site.start("scheduler")
    running = site.submit("echo begun; sleep 0.4; exit 4")
    eventually(site.output_path(running, 1, "stdout").exists)
    later = site.submit("echo later", deferred=True, run_at=datetime.now(UTC) + timedelta(seconds=0.2))
    waiting = site.submit("echo waiting") if trouble != "starts" else None
    site.transact.sql(breaking)
    if trouble == "starts":
        waiting = site.submit("echo waiting")
    for what in failing:
        eventually(lambda what=what: what in runner.log() + scheduler.log())  # type: ignore[misc]
    site.transact.sql(mending)
    assert waiting is not None
    ends = [site.final(job_id) for job_id in (running, later, waiting)]
    assert [(job.status, job.return_code, job.attempt) for job in ends] == [
        ("FAILED", 4, 1), ("COMPLETED", 0, 1), ("COMPLETED", 0, 1)
    ]  # fmt: skip
    assert site.output(ends[0]) == b"begun\n"
    assert runner.process.poll() is None and scheduler.process.poll() is None


def test_the_runner_is_killed_while_its_report_is_refused(site: Site) -> None:
    """Its successor says it again, and is refused, and goes on all the same."""
    site.transact.sql(_TROUBLES["ends"][0])
    job_id = site.submit("echo once; exit 4")
    for restart in range(2):
        runner = site.start("runner")
        what = "telling how jobs ended" if restart else "telling the end of job"
        eventually(lambda runner=runner, what=what: f"{what} " in runner.log())  # type: ignore[misc]
        runner.send(signal.SIGKILL)
        runner.wait()
    site.start("runner")
    site.transact.sql(_TROUBLES["ends"][1])
    job = site.final(job_id)
    assert (job.status, job.return_code, job.attempt, site.output(job)) == ("FAILED", 4, 1, b"once\n")


def test_a_runner_that_is_refused_can_be_stopped(site: Site) -> None:
    """What it could not tell is told by its successor."""
    runner = site.start_runner()
    site.transact.sql(_TROUBLES["ends"][0])
    job_id = site.submit("echo once; exit 4")
    eventually(lambda: "telling the end of job" in runner.log())
    runner.send(signal.SIGTERM)
    eventually(lambda: "draining" in runner.log())
    runner.send(signal.SIGTERM)
    assert runner.wait() == 0
    site.transact.sql(_TROUBLES["ends"][1])
    site.start("runner")
    job = site.final(job_id)
    assert (job.status, job.return_code, job.attempt) == ("FAILED", 4, 1)


_SLOW = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NEW; END $$;
CREATE TRIGGER slow BEFORE INSERT ON runner FOR EACH ROW EXECUTE FUNCTION slow();
"""


def test_a_runner_declared_gone_is_entered_anew_once(site: Site) -> None:
    """However often its claims are refused meanwhile."""
    runner = site.start_runner()
    jobs = [site.submit("sleep 60") for _ in range(QUICK["slots"])]  # so that it notices by its heartbeat
    eventually(lambda: all(site.started(job_id) for job_id in jobs))
    site.transact.sql(_SLOW)
    eventually(
        lambda: site.transact(liveness.expire, *site.transact.sql("SELECT id, incarnation, beat FROM runner")[0])
    )
    assert site.run("true").status == "COMPLETED"
    assert {site.final(job_id).status for job_id in jobs} == {"NODE_FAIL"}
    assert runner.log().count("declared gone") == 1


def test_a_web_worker_goes_on(worker: Worker) -> None:
    """It looks again at jobs that are waited for, and at busy tokens, when it could not for a while."""
    site = worker.site
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(worker.client.post, "/api/jobs?wait=20", json={"code": "echo hello"})
        eventually(lambda: site.transact.scalar("SELECT count(*) FROM job"))
        for breaking, mending, what in (
            ("ALTER TABLE running_job RENAME TO away", "ALTER TABLE away RENAME TO running_job", "waited for"),
            ("ALTER TABLE token RENAME TO away", "ALTER TABLE away RENAME TO token", "busy tokens"),
        ):
            site.transact.sql(breaking)

            def failed(what: str = what) -> bool:
                worker.client.get("/api/user")  # so that the token is a busy one
                return f"{what} failed" in worker.service.log()

            eventually(failed)
            site.transact.sql(mending)
        site.start_runner()
        assert waiting.result().json()["data"]["status"] == "COMPLETED"
    assert worker.client.get("/api/user").status_code == 200
    assert worker.service.process.poll() is None
