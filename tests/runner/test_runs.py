"""How jobs run and end, by a real runner in real sandboxes."""

from __future__ import annotations

import os
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shell_service import queue
from tests.factories import add_jobs, add_user
from tests.services import Service, Site, processes
from tests.waiting import eventually

CAPPED = {"output": 1 << 20}


pytestmark = pytest.mark.usefixtures("alive")


def test_an_echo(site: Site) -> None:
    job = site.run("echo hello; echo problems >&2")
    assert (job.status, job.reason, job.return_code, job.signal) == ("COMPLETED", "exit code 0", 0, None)
    assert (site.output(job), site.output(job, "stderr")) == (b"hello\n", b"problems\n")
    assert (job.stdout_bytes, job.stderr_bytes, job.output_truncated) == (6, 9, False)
    assert job.created_at <= job.started_at <= job.finished_at
    assert 0 < job.wall_seconds < 10
    assert job.cpu_seconds >= 0
    assert 100_000 < job.peak_memory_bytes < 1 << 30
    assert (job.runner, job.attempt) == ("runner_00", 1)


@pytest.mark.parametrize("code", [1, 3, 42, 126, 127, 143, 255])
def test_exit_codes(site: Site, code: int) -> None:
    job = site.run(f"exit {code}")
    assert (job.status, job.return_code, job.reason) == ("FAILED", code, f"exit code {code}")


@pytest.mark.parametrize("name", ["KILL", "TERM", "SEGV", "HUP"])
def test_signals_from_inside(site: Site, name: str) -> None:
    job = site.run(f"kill -{name} $$; sleep 5")
    assert (job.status, job.return_code, job.signal) == ("FAILED", None, f"SIG{name}")
    assert job.reason == f"killed by SIG{name} from inside"


def test_what_a_script_is_given(site: Site) -> None:
    job = site.run('echo "$1,$2,$GREETING"; cat', args=["a b", "ü"], env={"GREETING": "hello"}, stdin="from stdin")
    assert site.output(job).decode() == "a b,ü,hello\nfrom stdin"


def test_other_interpreters(site: Site) -> None:
    job = site.run("import sys; print(sys.version_info[0]); sys.exit(4)", shell="python")
    assert (site.output(job), job.return_code) == (b"3\n", 4)


def test_the_network_is_for_jobs_that_have_it(site: Site) -> None:
    user = site.transact(add_user, {"network": True})
    for wanted, interfaces in ((True, b"lo\ntap0\n"), (False, b"lo\n")):
        job = site.run("ls /proc/sys/net/ipv4/conf | grep -E '^(lo|tap0)$'", user=user, network=wanted)
        assert site.output(job) == interfaces


def test_an_interpreter_that_is_not_here(site: Site) -> None:
    job = site.run("true", shell="no-such-shell")
    assert job.status == "FAILED"
    assert "no-such-shell" in job.reason


def test_a_timeout(site: Site) -> None:
    job = site.run("echo before; sleep 60", timeout=0.3)
    assert (job.status, job.reason) == ("TIMEOUT", "stopped after its timeout of 0.3 s")
    assert site.output(job) == b"before\n"
    assert 0.3 <= job.wall_seconds < 1.2  # SIGTERM was enough


def test_a_timeout_gives_a_chance_to_clean_up(site: Site) -> None:
    job = site.run("trap 'echo cleaned; exit 5' TERM; while :; do sleep 0.05; done", timeout=0.3)
    assert (job.status, job.return_code) == ("TIMEOUT", 5)
    assert site.output(job) == b"cleaned\n"


def test_a_timeout_of_a_script_that_ignores_it(site: Site) -> None:
    job = site.run("trap '' TERM; while :; do sleep 0.05; done", timeout=0.3)
    assert (job.status, job.signal) == ("TIMEOUT", "SIGKILL")
    assert 1.3 <= job.wall_seconds < 5


def test_a_cancel_before_it_starts(site: Site) -> None:
    job_id = site.submit(run_at=datetime.now(UTC) + timedelta(hours=1), deferred=True)
    site.transact(queue.cancel, [job_id], "alice")
    job = site.final(job_id)
    assert (job.status, job.reason, job.started_at) == ("CANCELLED", "cancelled by alice", None)


def test_a_cancel_while_it_runs(site: Site) -> None:
    job_id = site.submit("echo before; sleep 60")
    path = site.output_path(job_id, 1, "stdout")
    eventually(path.exists)
    site.transact(queue.cancel, [job_id], "alice")
    job = site.final(job_id)
    assert (job.status, job.reason, job.cancelled_by) == ("CANCELLED", "cancelled by alice", "alice")
    assert site.output(job) == b"before\n"
    assert job.wall_seconds < 10


def test_a_cancel_that_the_script_ignores(site: Site) -> None:
    job_id = site.submit("trap '' TERM; echo before; while :; do sleep 0.05; done")
    eventually(site.output_path(job_id, 1, "stdout").exists)
    site.transact(queue.cancel, [job_id], "alice")
    job = site.final(job_id)
    assert (job.status, job.signal) == ("CANCELLED", "SIGKILL")


def test_cancels_at_any_moment_of_the_start(site: Site) -> None:
    ids = [site.submit("sleep 30") for _ in range(40)]
    for job_id in ids:
        site.transact(queue.cancel, [job_id], "alice")
    assert {site.final(job_id).status for job_id in ids} == {"CANCELLED"}


def test_a_cancel_that_nobody_was_told_of(site: Site) -> None:
    job_id = site.submit("sleep 60")
    eventually(lambda: site.started(job_id))
    site.transact.sql(  # as `queue.cancel`, without its notification
        "UPDATE running_job SET cancel_requested_at = now(), cancelled_by = 'alice' WHERE job_id = :id", id=job_id
    )
    assert site.final(job_id).status == "CANCELLED"


def test_retries(site: Site) -> None:
    job_id = site.submit("echo try; exit 9", retries=2, retry_delay=100.0)
    for attempt, delay in ((1, 100), (2, 200)):
        eventually(lambda: site.transact.sql("SELECT FROM deferred_job WHERE job_id = :id", id=job_id))
        row = site.transact.sql(
            "SELECT attempt, extract(epoch FROM run_at - clock_timestamp()) AS wait FROM deferred_job"
            " WHERE job_id = :id",
            id=job_id,
        )[0]
        assert (row.attempt, site.job(job_id).status) == (attempt, None)
        assert delay - 10 < row.wait <= delay
        site.hurry()
        site.transact(queue.promote)
    job = site.final(job_id)
    assert (job.status, job.return_code, job.attempt) == ("FAILED", 9, 3)
    assert [site.output(job, attempt=attempt) for attempt in (1, 2, 3)] == [b"try\n"] * 3


def test_a_timeout_is_tried_again(site: Site) -> None:
    job_id = site.submit("sleep 60", timeout=0.1, retries=1)
    eventually(lambda: site.transact.sql("SELECT FROM deferred_job WHERE job_id = :id", id=job_id))
    site.transact(queue.promote)
    job = site.final(job_id)
    assert (job.status, job.attempt) == ("TIMEOUT", 2)


def test_a_success_is_not_tried_again(site: Site) -> None:
    assert site.run("true", retries=3).attempt == 1


def test_output_of_any_bytes(site: Site) -> None:
    job = site.run(r"printf '\000\377\r\n\303'; printf '\001' >&2")
    assert (site.output(job), site.output(job, "stderr")) == (b"\x00\xff\r\n\xc3", b"\x01")


def test_output_past_its_cap_is_dropped_and_said_so(site: Site) -> None:
    job = site.run("head -c 3000000 /dev/zero; echo done >&2; exit 6", limits=CAPPED)
    assert (job.status, job.return_code, job.output_truncated, job.stdout_bytes) == ("FAILED", 6, True, 1 << 20)
    assert site.output(job) == bytes(1 << 20)
    assert site.output(job, "stderr") == b"done\n"


def test_output_just_at_its_cap_is_whole(site: Site) -> None:
    job = site.run("head -c 1048576 /dev/zero", limits=CAPPED)
    assert (job.output_truncated, job.stdout_bytes) == (False, 1 << 20)
    job = site.run("head -c 1048577 /dev/zero", limits=CAPPED)
    assert (job.output_truncated, job.stdout_bytes) == (True, 1 << 20)


def memory(service: Service) -> int:
    """Bytes of resident memory."""
    status = Path(f"/proc/{service.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def test_a_flood_costs_the_runner_no_memory(site: Site, runner: Service) -> None:
    site.run("head -c 3000000 /dev/zero")
    before, peak = memory(runner), 0
    job_id = site.submit("head -c 250000000 /dev/zero; exit 7", limits={"output": 1 << 28})

    def ended() -> str | None:
        nonlocal peak
        peak = max(peak, memory(runner))
        status: str | None = site.job(job_id).status
        return status

    eventually(ended, 60)
    job = site.job(job_id)
    assert (job.return_code, job.stdout_bytes, job.output_truncated) == (7, 250_000_000, False)
    assert peak - before < 16 << 20


def test_a_flood_does_not_hold_up_others(site: Site) -> None:
    flood = site.submit("while :; do head -c 10000000 /dev/zero; done", timeout=3.0)
    eventually(lambda: site.started(flood))
    begun = time.monotonic()
    assert site.run("echo hello").status == "COMPLETED"
    assert time.monotonic() - begun < 2
    site.transact(queue.cancel, [flood], "alice")
    assert site.final(flood).status == "CANCELLED"


@pytest.mark.parametrize(
    "leave",
    [
        "(sh -mc 'sleep {mark} >/dev/null 2>&1 &')",
        "(trap '' TERM HUP; sh -mc 'sleep {mark} &') ",
        "sleep {mark} & kill -STOP $!",
    ],
    ids=["daemonised", "holding the pipe", "stopped"],
)
@pytest.mark.parametrize("end", ["exit 0", "kill -KILL $$", "wait; sleep 60"], ids=["exits", "killed", "times out"])
def test_nothing_is_left_running(site: Site, leave: str, end: str) -> None:
    mark = f"31{time.monotonic_ns() % 10**9}.5"
    begun = time.monotonic()
    job = site.run(f"{leave.format(mark=mark)}\n sleep 0.1; echo left; {end}", timeout=0.5)
    assert job.status in ("COMPLETED", "FAILED", "TIMEOUT")
    assert site.output(job) == b"left\n"
    assert processes(mark) == []
    assert time.monotonic() - begun < 4


def launcher_of(pid: int) -> int:
    """The launcher above a process of a job."""
    while Path(f"/proc/{pid}/comm").read_text().strip() != "job-launcher":
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid


@pytest.mark.parametrize("on_lost", ["fail", "requeue"])
def test_a_script_whose_launcher_dies_is_lost(site: Site, on_lost: str) -> None:
    """Not killed from inside: nobody knows how it would have ended."""
    mark = f"32{time.monotonic_ns() % 10**9}.5"
    job_id = site.submit(f"sleep {mark}", on_lost=on_lost)
    os.kill(launcher_of(eventually(lambda: processes(mark))[0]), signal.SIGKILL)
    if on_lost == "fail":
        job = site.final(job_id)
        assert (job.status, job.reason) == ("NODE_FAIL", "the process that held its sandbox died")
    else:
        eventually(lambda: site.transact.sql("SELECT FROM deferred_job WHERE job_id = :id", id=job_id))
        site.transact(queue.cancel, [job_id], "alice")
    assert processes(mark) == []


def test_many_jobs_of_many_users(site: Site) -> None:
    users = [site.transact(add_user) for _ in range(5)]
    ids = {}
    for user in users:
        for number, job_id in enumerate(
            site.transact(add_jobs, user, 20, code='echo "$0" "$USER"; cat', stdin=f"for {user}")
        ):
            ids[job_id] = (user, number)
    for job_id, (user, _) in ids.items():
        job = site.final(job_id)
        assert job.status == "COMPLETED"
        assert site.output(job).endswith(f"for {user}".encode())


def test_the_running_limit_of_a_user_holds(site: Site) -> None:
    user = site.transact(add_user, {"max_running": 2})
    ids = site.transact(add_jobs, user, 8, code="sleep 0.1")
    most = 0

    def done() -> bool:
        nonlocal most
        most = max(most, site.transact.scalar("SELECT count(*) FROM running_job WHERE user_id = :u", u=user))
        return all(site.job(job_id).status for job_id in ids)

    eventually(done)
    assert most == 2
