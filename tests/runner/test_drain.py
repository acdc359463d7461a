"""A runner that is stopped in order: what it lets end, what it ends, and how much hurry it can be put in."""

from __future__ import annotations

import signal
import time
import uuid
from collections.abc import Iterator

import pytest

from tests.database import Server, assert_consistent
from tests.runner.conftest import QUICK
from tests.services import Service, Site, processes
from tests.waiting import eventually

STOPPED = "the runner was stopped while the script ran"
STUBBORN = "trap '' TERM; echo begun; while :; do sleep {mark}; done"


@pytest.fixture
def site(server: Server, drain: float, grace: float) -> Iterator[Site]:
    """A site whose runner lets jobs go on for `drain` seconds, and then gives them `grace`."""
    with (
        server.database() as url,
        Site(url, runner={**QUICK, "slots": 4, "drain_seconds": drain}, jobs={"kill_grace": grace}) as site,
    ):
        yield site
        assert_consistent(site.transact)


def start(site: Site, *codes: str, **fields: str) -> tuple[Service, list[uuid.UUID]]:
    """A runner that runs jobs, each of which has printed something."""
    runner = site.start_runner()
    jobs = [site.submit(code, **fields) for code in codes]
    eventually(lambda: all(site.output_path(job_id, 1, "stdout").exists() for job_id in jobs))
    return runner, jobs


@pytest.mark.parametrize(("drain", "grace"), [(1.0, 0.5)])
def test_when_the_time_to_drain_is_over(site: Site) -> None:
    mark = "3301.25"
    runner, jobs = start(
        site,
        "echo begun; sleep 0.3; echo ended; exit 3",
        "trap 'echo cleaned; exit 4' TERM; echo begun; while :; do sleep 0.02; done",
        STUBBORN.format(mark=mark),
        f"(sh -mc 'sleep {mark} >/dev/null 2>&1 &') ; echo begun; sleep {mark}",
    )
    waiting = site.submit("echo waiting")  # all slots are taken
    runner.send(signal.SIGTERM)
    asked = time.monotonic()
    assert runner.wait() == 0, runner.log()
    assert 1.0 <= time.monotonic() - asked < 5
    short, *long = [site.job(job_id) for job_id in jobs]
    assert (short.status, short.return_code, site.output(short)) == ("FAILED", 3, b"begun\nended\n")
    assert {(job.status, job.reason, job.attempt) for job in long} == {("NODE_FAIL", STOPPED, 1)}
    assert site.output(long[0]) == b"begun\ncleaned\n"
    assert processes(mark) == []
    # Its slot was free for a while, but nothing begins in a runner that is to stop.
    assert site.transact.sql("SELECT job_id, attempt FROM ready_job") == [(waiting, 0)]
    assert site.transact.scalar("SELECT state FROM runner") == "gone"


@pytest.mark.parametrize(("drain", "grace", "phase"), [(60, 60, "draining"), (0.1, 60, "still running")])
@pytest.mark.parametrize("on_lost", ["fail", "requeue"])
def test_a_second_sigterm_ends_at_once_what_still_runs(site: Site, phase: str, on_lost: str) -> None:
    mark = "3302.25"
    runner, (job_id,) = start(site, STUBBORN.format(mark=mark), on_lost=on_lost)
    runner.send(signal.SIGTERM)
    eventually(lambda: phase in runner.log())
    runner.send(signal.SIGTERM)
    assert runner.wait(5) == 0
    assert processes(mark) == []
    if on_lost == "fail":
        job = site.job(job_id)
        assert (job.status, job.reason, site.output(job)) == ("NODE_FAIL", STOPPED, b"begun\n")
    else:
        assert site.transact.sql("SELECT job_id, attempt FROM deferred_job") == [(job_id, 1)]
