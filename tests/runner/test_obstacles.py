"""What keeps a runner from running jobs at all: it takes none, says why, and goes on when it can."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tests.database import Server, assert_consistent
from tests.factories import add_user
from tests.runner.conftest import QUICK
from tests.sandbox.play_network import without_slirp4netns
from tests.services import Service, Site
from tests.waiting import eventually


@contextmanager
def no_more_files(service: Service) -> Iterator[None]:
    """Let a process open no further file: so no pipe to a job, and no socket to a launcher, can be made."""
    used = {int(name) for name in os.listdir(f"/proc/{service.pid}/fd")}
    first_free = min(set(range(len(used) + 1)) - used)
    before = resource.prlimit(service.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (first_free, before[1]))
    try:
        yield
    finally:
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, before)


def problem(site: Site) -> str | None:
    """Why the runner takes no jobs, by the database."""
    found: str | None = site.transact.scalar("SELECT obstacle FROM runner")
    return found


def test_a_job_for_which_no_sandbox_can_be_made_is_given_back(empty_site: Site) -> None:
    site = empty_site
    runner = site.start_runner()
    assert site.run("true").status == "COMPLETED"
    with no_more_files(runner):
        job_id = site.submit("echo once")
        assert "cannot be made" in str(eventually(lambda: problem(site)))
        eventually(lambda: not site.transact.sql("SELECT FROM running_job"))
        assert site.transact.sql("SELECT attempt FROM ready_job WHERE job_id = :id", id=job_id)[0].attempt == 0
        claims = site.transact.scalar("SELECT count(*) FROM witness WHERE what = 'claimed'")
        again = site.submit("echo twice")
        before = site.transact.scalar("SELECT beat FROM runner")
        eventually(lambda: site.transact.scalar("SELECT beat FROM runner") > before + 2)
        assert site.transact.scalar("SELECT count(*) FROM witness WHERE what = 'claimed'") == claims == 2
    for wanted, output in ((job_id, b"once\n"), (again, b"twice\n")):
        job = site.final(wanted)
        assert (job.status, job.attempt, site.output(job)) == ("COMPLETED", 1, output)
    eventually(lambda: problem(site) is None)
    assert "jobs are taken again" in runner.log()
    assert_consistent(site.transact)


def test_a_runner_without_network_runs_all_other_jobs(empty_site: Site) -> None:
    site = empty_site
    user = site.transact(add_user, {"network": True})
    waiting = site.submit("echo with", user=user, network=True)
    runner = site.start_runner(enter=without_slirp4netns)
    wanting = site.final(waiting)
    reason = "The runner cannot give jobs the network: slirp4netns is not installed."
    assert (wanting.status, wanting.reason) == ("FAILED", reason)
    assert (wanting.attempt, wanting.return_code, site.output(wanting)) == (1, None, b"")
    assert site.run("echo without").status == "COMPLETED"
    assert problem(site) is None
    assert site.transact.scalar("SELECT facts ->> 'network' FROM runner") == "slirp4netns is not installed"
    assert "needed are slirp4netns" in runner.log()
    assert_consistent(site.transact)


def test_without_walls_there_is_one_user_or_no_job_at_all(server: Server) -> None:
    with server.database() as url, Site(url, runner=QUICK, sandbox={"mode": "none"}) as site:
        runner = site.start_runner()
        job = site.run("pwd; id -u")
        assert job.status == "COMPLETED"
        assert site.output(job).endswith(f"/home\n{os.geteuid()}\n".encode())  # as whoever the service is
        assert site.transact.scalar("SELECT facts ->> 'sandbox' FROM runner") == "none"
        second = site.transact(add_user)
        eventually(lambda: "there are 2" in str(problem(site)))
        job_id = site.submit("echo later")
        before = site.transact.scalar("SELECT beat FROM runner")
        eventually(lambda: site.transact.scalar("SELECT beat FROM runner") > before + 1)
        assert site.job(job_id).status is None
        site.transact.sql('DELETE FROM "user" WHERE id = :id', id=second)
        assert site.output(site.final(job_id)) == b"later\n"
        site.transact(add_user)
        runner.send(signal.SIGTERM)
        assert runner.wait() == 0
        site.start("runner")
        eventually(lambda: "there are 2" in str(problem(site)))


def test_no_job_is_taken_while_memory_is_short(server: Server) -> None:
    short = {**QUICK, "min_free_memory": "1TiB"}
    with server.database() as url, Site(url, runner=short) as site:
        job_id = site.submit()
        runner = site.start("runner")
        eventually(lambda: site.transact.sql("SELECT FROM runner WHERE obstacle LIKE '%(runner.min_free_memory)%'"))
        eventually(lambda: "no jobs are taken: The machine's memory" in runner.log())
        assert site.transact.scalar("SELECT count(*) FROM witness") == 0
        assert site.job(job_id).status is None
