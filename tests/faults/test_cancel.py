"""A process killed in the middle of a cancel: each job has one final state, and it is a true one."""

from __future__ import annotations

import signal
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from shell_service import queue
from tests.factories import add_jobs, add_user
from tests.faults.conftest import Worker
from tests.services import Site, processes
from tests.waiting import eventually

STUBBORN = "trap 'echo asked' TERM; echo begun; while :; do sleep {mark}; done"


def statuses(site: Site) -> dict[Any, int]:
    """How many jobs have each status; None are those that have not ended."""
    return dict(site.transact.sql("SELECT status, count(*) FROM job GROUP BY 1"))  # type: ignore[arg-type]


@pytest.mark.parametrize("state", ["waits", "runs"])
def test_the_worker_is_killed_after_a_cancel(site: Site, state: str) -> None:
    """The answer is lost, the cancel is not."""
    worker = Worker(site, "app.after_cancel=kill")
    if state == "runs":
        site.start_runner()
    job_id = site.submit("echo begun; sleep 60")
    if state == "runs":
        eventually(site.output_path(job_id, 1, "stdout").exists)
    with pytest.raises(httpx.TransportError):
        worker.client.post(f"/api/jobs/job_{job_id.hex}/cancel")
    assert worker.service.wait() == -signal.SIGKILL
    job = site.final(job_id)
    assert (job.status, job.reason, job.cancelled_by) == ("CANCELLED", "cancelled by admin", "admin")
    again = Worker(site).client.post(f"/api/jobs/job_{job_id.hex}/cancel")
    assert again.json()["data"]["status"] == "CANCELLED"
    assert site.job(job_id).modified == job.modified


def test_the_worker_is_killed_after_a_part_of_a_cancel_of_many(site: Site) -> None:
    """The jobs of that part are cancelled, the others run or can be cancelled by asking again."""
    worker = Worker(site, "app.after_cancel=kill@2")
    ids = site.transact(add_jobs, site.user, 1500)
    with pytest.raises(httpx.TransportError):
        worker.client.post("/api/jobs/cancel", json={})
    assert worker.service.wait() == -signal.SIGKILL
    assert statuses(site) == {"CANCELLED": 1000, None: 500}
    site.transact.sql("UPDATE job SET code = 'true'")
    site.start_runner()
    eventually(lambda: statuses(site).get("COMPLETED", 0) >= 5)
    again = Worker(site).client.post("/api/jobs/cancel", json={}).json()["data"]
    site.all_final()
    ends = statuses(site)
    assert ends.keys() == {"CANCELLED", "COMPLETED"}
    assert sum(ends.values()) == len(ids)
    # Those that ran when they were asked to end may have been done by then.
    assert 1000 <= ends["CANCELLED"] <= 1000 + again["cancelled"]


@pytest.mark.parametrize("place", ["cancel_heard", "terminated"])
@pytest.mark.parametrize("on_lost", ["fail", "requeue"])
def test_the_runner_is_killed_within_a_cancel(site: Site, place: str, on_lost: str) -> None:
    """What was asked to end is not run again; that it was not seen to end is said."""
    mark = "3401.25"
    job_id = site.submit(STUBBORN.format(mark=mark), on_lost=on_lost)
    runner = site.start_runner(f"runner.{place}=kill")
    eventually(site.output_path(job_id, 1, "stdout").exists)
    site.transact(queue.cancel, [job_id], "alice")
    assert runner.wait() == -signal.SIGKILL
    eventually(lambda: not processes(mark), 5)
    site.start_runner()
    job = site.final(job_id)
    assert (job.status, job.attempt) == ("NODE_FAIL", 1)
    assert "not known" in job.reason
    assert site.run("echo on").status == "COMPLETED"


@pytest.mark.parametrize("place", ["cancel_heard", "terminated"])
def test_the_runner_stands_still_within_a_cancel(site: Site, place: str) -> None:
    """Others settle it, and whatever it does later changes nothing."""
    mark = "3402.25"
    job_id = site.submit(STUBBORN.format(mark=mark))
    site.start("scheduler")
    runner = site.start_runner(f"runner.{place}=stop")
    eventually(site.output_path(job_id, 1, "stdout").exists)
    site.transact(queue.cancel, [job_id], "alice")
    job = site.final(job_id)
    assert job.status == "NODE_FAIL"
    runner.send(signal.SIGCONT)
    eventually(lambda: not processes(mark), 5)
    assert site.run("echo on").status == "COMPLETED"
    assert site.job(job_id).modified == job.modified


def test_the_worker_is_killed_after_a_deactivation(site: Site) -> None:
    """The scheduler cancels what is left of that user's."""
    worker = Worker(site, "app.after_deactivation=kill")
    site.start_runner()
    user = site.transact(add_user, {"max_running": 1}, username="gone")
    running = site.submit("echo begun; sleep 60", user=user)
    eventually(site.output_path(running, 1, "stdout").exists)
    ready = site.submit("echo hello", user=user)
    deferred = site.submit("echo hello", user=user, deferred=True, run_at=datetime.now(UTC) + timedelta(days=1))
    with pytest.raises(httpx.TransportError):
        worker.client.patch("/api/users/gone", json={"active": False})
    assert worker.service.wait() == -signal.SIGKILL
    assert statuses(site) == {None: 3}
    site.start("scheduler")
    for job_id in (running, ready, deferred):
        job = site.final(job_id)
        assert (job.status, job.reason) == ("CANCELLED", "cancelled by the service")
    assert site.job(ready).started_at is None
