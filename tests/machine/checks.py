"""What control groups hold, by real runners: for a machine that has them. See this package for how to get one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.database import Server, assert_truthful
from tests.runner.conftest import QUICK
from tests.runner.test_limits import FORKS, HELD_ONLY, MEMORY_BOMBS, THREADS, MiB
from tests.services import Service, Site
from tests.waiting import eventually

GROUPS = Path("/sys/fs/cgroup/system.slice/machine.service")
SMALL = {"memory": 48 * MiB, "processes": 16}
OPTIONS = {"runner": {**QUICK, "min_free_memory": 0}, "jobs": {"kill_grace": 1}}


@pytest.fixture(scope="module")
def site(server: Server) -> Iterator[Site]:
    with server.database() as url, Site(url, **OPTIONS) as site:
        yield site


@pytest.fixture(scope="module")
def runner(site: Site) -> Iterator[Service]:
    runner = site.start_runner()
    yield runner
    runner.send(signal.SIGTERM)
    runner.wait(300)
    assert groups() == []


@pytest.fixture
def alive(runner: Service) -> Iterator[None]:
    yield
    assert runner.process.poll() is None, runner.log()
    assert "Traceback" not in runner.log()


def groups() -> list[str]:
    """Those of attempts, of all runners."""
    return [path.name for path in GROUPS.glob("runner_*/*") if path.is_dir()]


def test_the_runner_says_what_is_held(site: Site, runner: Service, alive: None) -> None:
    assert "not held by the kernel" not in runner.log()
    limits = site.transact.scalar("SELECT facts -> 'limits' FROM runner")
    assert {name for name, how in limits.items() if how == "watched"} == {"cpu_seconds"}
    assert (GROUPS / "cgroup.procs").read_text() == ""
    assert str(runner.pid) in (GROUPS / "service/cgroup.procs").read_text().split()


SOCKETS = """
import socket
kept = []
while True:
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    pair[0].setblocking(False)
    try:
        while True:
            pair[0].send(b"x" * 65536)
    except BlockingIOError:
        kept.append(pair)
"""
SENT = HELD_ONLY.replace(
    "while True:",
    """import socket
a, b = socket.socketpair()
while True:
    file = os.memfd_create("bomb")
    os.write(file, b"x" * (1 << 20))
    socket.send_fds(a, [b"x"], [file])
    os.close(file)
    continue
""",
)
BOMBS = {**MEMORY_BOMBS, "in files on their way": SENT}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_memory(site: Site, runner: Service, alive: None, bomb: str) -> None:
    job = site.run(bomb, shell="python", limits=SMALL)
    assert (job.status, job.reason) == (
        "OUT_OF_MEMORY",
        "stopped: more than 48 MiB of memory used, 48 MiB allowed",
    )
    assert 40 * MiB < job.peak_memory_bytes <= 48 * MiB
    assert groups() == []


def test_memory_of_the_kernel_itself(site: Site, runner: Service, alive: None) -> None:
    """400 MiB in sockets, if it could. Near its limit a job reads its programs again and again, and comes to no end."""
    job = site.run(SOCKETS, shell="python", limits={**SMALL, "open_files": 4096}, timeout=15.0)
    assert job.status in ("OUT_OF_MEMORY", "TIMEOUT")
    assert 40 * MiB < job.peak_memory_bytes <= 48 * MiB


@pytest.mark.parametrize("bomb", [FORKS, THREADS], ids=["forks", "threads"])
def test_processes(site: Site, runner: Service, alive: None, bomb: str) -> None:
    job = site.run(bomb, shell="python", limits={**SMALL, "memory": 512 * MiB})
    assert (job.status, job.signal) == ("FAILED", "SIGKILL")
    assert int(job.reason.removeprefix("stopped: ").removesuffix(" processes wanted, 16 allowed")) > 16


def test_never_more_processes_than_allowed(site: Site, runner: Service, alive: None) -> None:
    """Not for a moment, as there would be if they were only looked at: each is told of before the next is forked."""
    code = "import os, time\nfor n in range(2, 60):\n os.fork() or time.sleep(60)\n os.write(1, b'%d\\n' % n)"
    job = site.run(code, shell="python", limits=SMALL)
    assert max(map(int, site.output(job).split())) == SMALL["processes"], job.reason


def test_just_as_many_processes_as_allowed(site: Site, runner: Service, alive: None) -> None:
    code = "for i in $(seq 15); do sleep 3 & done; wait; echo done"
    job = site.run(code, limits={"processes": 16})
    assert (job.status, site.output(job)) == ("COMPLETED", b"done\n")


def test_processors(site: Site, runner: Service, alive: None) -> None:
    job = site.run("(while :; do :; done) & while :; do :; done", limits={"cpu": 0.5}, timeout=6.0)
    assert job.status == "TIMEOUT"
    assert job.cpu_seconds < 0.6 * job.wall_seconds


def test_processor_time_of_children_that_nobody_waits_for(site: Site, runner: Service, alive: None) -> None:
    code = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    if not os.fork():
        while time.process_time() < 0.2: pass
        os._exit(0)
    time.sleep(0.3)
"""
    job = site.run(code, shell="python", limits={"cpu_seconds": 2})
    assert job.status == "TIMEOUT"
    assert job.reason.endswith("s of processor time used, 2 s allowed")
    assert 2 <= job.cpu_seconds < 4


@pytest.mark.parametrize(
    ("code", "reason"), [("exit 137", "exit code 137"), ("kill -9 $$", "killed by SIGKILL from inside")]
)
def test_what_is_the_script_s_own(site: Site, runner: Service, alive: None, code: str, reason: str) -> None:
    job = site.run(code)
    assert (job.status, job.reason) == ("FAILED", reason)
    assert 0 < job.peak_memory_bytes < 64 * MiB


@pytest.mark.parametrize("place", ["held", "grouped", "running", "exited"])
def test_groups_of_a_killed_runner(server: Server, place: str) -> None:
    with server.database() as url, Site(url, **OPTIONS) as site:
        job_id = site.submit("setsid sleep 500 & exec sleep 500" if place == "running" else "exit 7")
        killed = site.start("runner", f"runner.{place}=kill")
        assert killed.wait(300) == -signal.SIGKILL, killed.log()
        site.transact.sql("UPDATE job SET code = 'exit 7'")
        successor = site.start_runner()
        job = site.final(job_id)
        assert job.status == ("FAILED" if place in ("held", "grouped") else "NODE_FAIL")
        eventually(lambda: groups() == [])
        assert_truthful(site.transact)
        successor.send(signal.SIGTERM)
        successor.wait(300)


def test_the_machine_runs_out_of_memory(server: Server) -> None:
    """Of the unit here: it is no limit of the job's own that is passed."""
    with server.database() as url, Site(url, **OPTIONS) as site:
        runner = site.start_runner()
        job_id = site.submit("import time\ntime.sleep(5)\nkept = b'x' * (400 << 20)\ntime.sleep(60)", shell="python")
        (found,) = eventually(lambda: [path for path in GROUPS.glob("runner_*/*/cgroup.procs") if path.read_text()])
        (found.parent.parent / "memory.max").write_text(str(100 * MiB))
        job = site.final(job_id)
        assert (job.status, job.signal) == ("OUT_OF_MEMORY", "SIGKILL")
        assert job.reason == "the machine ran out of memory"
        runner.send(signal.SIGTERM)
        runner.wait(300)


def test_it_is_this_user_s_test() -> None:
    print(f"as uid {os.geteuid()}: {Path('/proc/self/cgroup').read_text().strip()}, Linux {os.uname().release}")
