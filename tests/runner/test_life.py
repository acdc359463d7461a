"""A runner's own life: its start, its end, what it does when the database is away, and what it never does twice."""

from __future__ import annotations

import json
import signal
import uuid
from pathlib import Path

import pytest

from shell_service import liveness
from shell_service.output import STREAMS
from tests.database import Server, assert_consistent, assert_truthful
from tests.factories import JOB_LIMITS
from tests.runner.conftest import QUICK
from tests.sandbox.support import mask_proc
from tests.services import Site, host, processes
from tests.waiting import eventually


@pytest.fixture
def site(empty_site: Site) -> Site:
    return empty_site


def test_sigterm_lets_jobs_end_and_takes_no_more(site: Site) -> None:
    runner = site.start_runner()
    running = site.submit("sleep 1; echo done")
    eventually(lambda: site.started(running))
    runner.send(signal.SIGTERM)
    eventually(lambda: "draining" in runner.log())
    waiting = site.submit()
    assert runner.wait() == 0
    job = site.final(running, 0.1)
    assert (job.status, site.output(job)) == ("COMPLETED", b"done\n")
    assert site.job(waiting).status is None
    assert site.transact(liveness.heartbeats) == {}
    site.start_runner()
    assert site.final(waiting).status == "COMPLETED"
    assert_truthful(site.transact)


@pytest.mark.parametrize("on_lost", ["fail", "requeue"])
def test_sigterm_ends_what_takes_too_long(server: Server, on_lost: str) -> None:
    with server.database() as url, Site(url, runner={**QUICK, "drain_seconds": 0.2}, jobs={"kill_grace": 0.3}) as site:
        runner = site.start_runner()
        job_id = site.submit("trap '' TERM; echo here; while :; do sleep 0.05; done", on_lost=on_lost)
        eventually(site.output_path(job_id, 1, "stdout").exists)
        runner.send(signal.SIGTERM)
        runner.send(signal.SIGTERM)
        assert runner.wait() == 0
        assert_consistent(site.transact)
        if on_lost == "fail":
            assert site.job(job_id).status == "NODE_FAIL"
        else:
            assert site.transact.scalar("SELECT count(*) FROM deferred_job") == 1


def test_sigterm_while_the_database_is_away(server: Server) -> None:
    with server.database() as url, Site(url, runner=QUICK) as site:
        config = site.config.read_text()
        site.config.write_text(config.replace("host=", "host=/nowhere"))
        runner = site.start("runner")
        eventually(lambda: "database unavailable" in runner.log())
        runner.send(signal.SIGTERM)
        assert runner.wait(5) == 0


def test_a_twin_is_refused(site: Site) -> None:
    first = site.start_runner()
    twin = site.start("runner")
    assert twin.wait() != 0
    assert "another process is the runner" in twin.log()
    assert site.run("true").status == "COMPLETED"
    assert first.process.poll() is None


def test_a_claim_whose_answer_was_lost_is_given_back(site: Site) -> None:
    runner = site.start_runner()
    runner_id, (incarnation, _) = next(iter(site.transact(liveness.heartbeats).items()))
    with site.transact.engine.begin() as connection:
        connection.exec_driver_sql("LOCK TABLE ready_job IN SHARE ROW EXCLUSIVE MODE")  # the runner cannot claim
        user = connection.exec_driver_sql('SELECT min(id) FROM "user"').scalar()
        job_id = uuid.uuid4()
        connection.exec_driver_sql(
            "INSERT INTO job (id, user_id, name, priority, code, shell, args, env, stdin, timeout, limits, retries,"
            " retry_delay, on_lost, created_at, modified) VALUES (%s, %s, 'job', 0, 'true', 'sh', '[]', '{}', '',"
            " 9, %s, 0, 0, 'fail', now(), now())",
            (str(job_id), user, json.dumps(JOB_LIMITS)),
        )
        connection.exec_driver_sql(
            "INSERT INTO running_job (job_id, user_id, ord, attempt, fence, runner_id, incarnation)"
            " VALUES (%s, %s, 0, 1, nextval('fence_seq'), %s, %s)",
            (str(job_id), user, runner_id, str(incarnation)),
        )
    job = site.final(job_id)
    assert (job.status, job.attempt) == ("COMPLETED", 1)
    assert "giving back 1 jobs" in runner.log()


_REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON running_job FOR EACH ROW EXECUTE FUNCTION refuse();
"""


def test_a_script_that_may_not_begin_does_not(site: Site) -> None:
    with site.transact.engine.begin() as connection:
        connection.exec_driver_sql(_REFUSE)  # so that no start can be recorded
    site.start_runner()
    job_id = site.submit("echo begun")
    eventually(lambda: site.transact.scalar("SELECT count(*) FROM witness WHERE what = 'claimed'") >= 5)
    assert not site.output_path(job_id, 1, "stdout").exists()
    assert site.job(job_id).status is None
    site.transact.sql("DROP TRIGGER refuse ON running_job")
    job = site.final(job_id)
    assert (job.status, job.attempt, site.output(job)) == ("COMPLETED", 1, b"begun\n")
    assert_truthful(site.transact)


def test_a_runner_declared_gone_begins_anew(site: Site) -> None:
    mark = "317.0625"
    runner = site.start_runner()
    job_id = site.submit(f"sleep {mark}")
    eventually(lambda: processes(mark))
    runner_id, (incarnation, _) = next(iter(site.transact(liveness.heartbeats).items()))
    expired = eventually(
        lambda: site.transact(liveness.expire, runner_id, *site.transact(liveness.heartbeats)[runner_id])
    )  # as fast as it beats
    assert expired
    assert site.final(job_id).status == "NODE_FAIL"
    eventually(lambda: not processes(mark), 5)
    assert site.run("echo again").status == "COMPLETED"
    assert site.transact(liveness.heartbeats)[runner_id][0] != incarnation
    assert runner.process.poll() is None
    assert_truthful(site.transact)


def test_a_runner_is_known_by_its_host_and_name(site: Site) -> None:
    first = site.start_runner()
    first.send(signal.SIGTERM)
    assert first.wait() == 0
    site.start_runner()
    rows = site.transact.sql("SELECT host, name, state, slots FROM runner")
    assert [tuple(row) for row in rows] == [(host(), "runner_00", "live", 4)]


def test_without_its_sandbox_it_takes_nothing_and_says_why(server: Server) -> None:
    with server.database() as url, Site(url, runner=QUICK) as site:
        job_id = site.submit()
        runner = site.start("runner", enter=mask_proc)
        eventually(lambda: "no jobs are taken" in runner.log())
        problem = eventually(lambda: site.transact.sql("SELECT obstacle FROM runner")[0].obstacle)
        assert problem
        assert site.transact.scalar("SELECT count(*) FROM witness") == 0
        assert site.job(job_id).status is None
        runner.send(signal.SIGTERM)
        assert runner.wait() == 0


def test_what_removed_jobs_printed_is_removed(site: Site) -> None:
    kept, gone = (site.submit(f"echo {word}; echo {word} >&2", retries=1) for word in ("kept", "gone"))
    with_runner = site.start_runner()
    eventually(lambda: site.transact.scalar("SELECT count(*) FROM job WHERE status IS NULL") == 0)
    with_runner.kill()
    site.transact.sql("INSERT INTO discarded SELECT id, attempt FROM job WHERE id = :id", id=gone)
    paths = {job_id: [Path(site.outputs.path(job_id, 1, stream)) for stream in STREAMS] for job_id in (kept, gone)}
    assert all(path.exists() for files in paths.values() for path in files)
    site.start_runner()
    eventually(lambda: not site.transact.sql("SELECT FROM discarded"))
    assert not any(path.exists() for path in paths[gone])
    assert all(path.exists() for path in paths[kept])
