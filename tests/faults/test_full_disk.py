"""No room for what jobs print, for the runner's journal, for the database: nothing is lost, nothing untrue is said."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator

import pytest

from shell_service.output import OutputStore
from tests.database import EmbeddedServer, Server, assert_consistent, assert_truthful
from tests.factories import add_jobs
from tests.faults.conftest import QUICK, Worker
from tests.faults.small_disk import SmallDisk
from tests.services import Site
from tests.waiting import eventually

MIB = 1 << 20


@pytest.fixture
def site(server: Server, min_free: int) -> Iterator[Site]:
    """A site where nothing runs yet, whose runner wants so many bytes to be free."""
    with server.database() as url, Site(url, runner={**QUICK, "min_free": min_free}, jobs={"kill_grace": 0.5}) as site:
        yield site
        assert_consistent(site.transact)


def problem(site: Site) -> str:
    """Why the runner takes no jobs, by the database."""
    return str(site.transact.scalar("SELECT obstacle FROM runner") or "")


@pytest.mark.parametrize("min_free", [0])
def test_output_for_which_there_is_no_room(site: Site) -> None:
    """It is truncated, and said to be; the job goes on to its own end, and so does the runner."""
    with SmallDisk(site.settings.output_dir, 4 * MIB) as disk:
        site.outputs = OutputStore(disk.folder)
        site.start_runner(enter=disk.enter)
        flood = site.run("head -c 8000000 /dev/zero | tr '\\0' x; echo done >&2; exit 6")
        assert (flood.status, flood.return_code, flood.output_truncated) == ("FAILED", 6, True)
        assert 3 * MIB < flood.stdout_bytes <= 4 * MIB
        assert site.output(flood) == b"x" * flood.stdout_bytes
        late = site.run("echo late; exit 7")
        assert (late.status, late.return_code, late.output_truncated, late.stdout_bytes) == ("FAILED", 7, True, 0)
        silent = site.run("exit 8")
        assert (silent.status, silent.return_code, silent.output_truncated) == ("FAILED", 8, False)
        site.output_path(flood.id, 1, "stdout").unlink()
        job = site.run("echo whole")
        assert (job.status, job.output_truncated, site.output(job)) == ("COMPLETED", False, b"whole\n")
        assert_truthful(site.transact)


@pytest.mark.parametrize("min_free", [0])
def test_a_journal_for_which_there_is_no_room(site: Site) -> None:
    """What cannot be noted does not begin, and goes back; what runs ends with its own truth."""
    with SmallDisk(site.settings.data_dir / "runner", MIB) as disk:
        runner = site.start_runner(enter=disk.enter)
        running = site.submit("echo begun; sleep 0.5; exit 4")
        eventually(site.output_path(running, 1, "stdout").exists)
        disk.fill()
        many = site.transact(add_jobs, site.user, 60, code="echo once; exit 5")  # some may fit into what is begun
        eventually(lambda: "journal cannot be written" in problem(site))
        eventually(lambda: not site.transact.sql("SELECT FROM running_job"))
        assert site.final(running).return_code == 4
        assert site.transact.scalar("SELECT count(*) FROM ready_job WHERE attempt = 0") > 0
        assert site.transact.sql("SELECT FROM job WHERE status IS NOT NULL AND return_code NOT IN (4, 5)") == []
        disk.free()
        site.all_final()
        eventually(lambda: not problem(site))
        ends = [site.job(job_id) for job_id in many]
        assert {(job.status, job.return_code, job.attempt) for job in ends} == {("FAILED", 5, 1)}
        assert {site.output(job) for job in ends} == {b"once\n"}
        assert runner.process.poll() is None


@pytest.mark.parametrize("min_free", [2 * MIB])
def test_no_job_is_taken_while_there_is_little_room(site: Site) -> None:
    with SmallDisk(site.settings.output_dir, 4 * MIB) as disk:
        worker = Worker(site)
        site.start_runner(enter=disk.enter)
        assert site.run("true").status == "COMPLETED"
        disk.fill()
        many = site.transact(add_jobs, site.user, 20, code="echo hello")
        assert "nearly full" in eventually(lambda: problem(site))
        record = worker.client.get(f"/api/jobs/job_{many[-1].hex}").json()["data"]
        assert record["status"] == "PENDING"
        assert record["pending_reason"].startswith("no runner can")
        beat = site.transact.scalar("SELECT beat FROM runner")
        eventually(lambda: site.transact.scalar("SELECT beat FROM runner") > beat + 3)
        assert site.transact.scalar("SELECT count(*) FROM witness WHERE what = 'claimed'") == 1
        disk.free()
        site.all_final()
        ends = [site.job(job_id) for job_id in many]
        assert {(job.status, job.output_truncated) for job in ends} == {("COMPLETED", False)}
        eventually(lambda: not problem(site))
        assert_truthful(site.transact)


def test_a_database_for_which_there_is_no_room() -> None:
    """What it cannot store is refused, what it has said yes to is there, and what ran meanwhile is told later."""
    server = EmbeddedServer()
    with SmallDisk(server.cluster.data, 256 * MIB) as disk:
        server.enter = disk.enter
        with server, server.database() as url, Site(url, runner=QUICK, jobs={"kill_grace": 0.5}) as site:
            worker, runner, scheduler = Worker(site), site.start_runner(), site.start("scheduler")
            running = [site.submit("echo begun; sleep 1; echo ended; exit 4") for _ in range(3)]
            eventually(lambda: all(site.output_path(job_id, 1, "stdout").exists() for job_id in running))
            disk.fill()
            known: set[str] = set()
            refused: list[dict[str, str]] = []
            while len(refused) < 5:
                number = len(known) + len(refused)
                assert number < 2000
                body = {"name": f"n{number}", "code": "echo stored", "stdin": random(5000)}
                answer = worker.post(f"key-{number}", body=body)
                if answer.status_code == 200:
                    known.add(answer.json()["data"]["id"])
                else:
                    assert answer.status_code == 503, answer.text
                    assert int(answer.headers["Retry-After"]) > 0
                    refused.append(body)
            assert worker.client.get("/api/user").status_code == 200  # what needs no room goes on
            disk.free()
            for body in refused:
                answer = worker.post(body["name"].replace("n", "key-"), body=body)
                assert answer.status_code == 200, answer.text
                known.add(answer.json()["data"]["id"])
            site.all_final(60)
            stored = {f"{row.name}_{row.id.hex}" for row in site.transact.sql("SELECT name, id FROM job")}
            assert stored == known | {f"job_{job_id.hex}" for job_id in running}
            for job_id in running:
                job = site.job(job_id)
                assert (job.status, job.return_code, site.output(job)) == ("FAILED", 4, b"begun\nended\n")
            assert_truthful(site.transact)
            for service in (worker.service, runner, scheduler):
                assert service.process.poll() is None, service.log()


def random(count: int) -> str:
    """Text of so many characters that cannot be compressed much."""
    return base64.b85encode(os.urandom(count * 4 // 5)).decode()
