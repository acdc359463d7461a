"""Limits by attack: what wants too much is ended, with the reason; what does not is left alone, and nobody notices."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from tests.factories import add_user
from tests.services import Service, Site, processes
from tests.waiting import eventually

MiB = 1 << 20
SMALL = {"memory": 64 * MiB, "processes": 32}


pytestmark = pytest.mark.usefixtures("alive")

FORKS = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
THREADS = """
import threading, time
while True:
    try:
        threading.Thread(target=time.sleep, args=(60,)).start()
    except RuntimeError:
        pass
"""
PRIVATE = "kept = []\nwhile True: kept.append(b'x' * (1 << 20))"
SHARED = """
import mmap
kept = []
while True:
    kept.append(mmap.mmap(-1, 1 << 20))
    kept[-1].write(b"x" * (1 << 20))
"""
HELD_ONLY = """
import os
file = os.memfd_create("bomb")
while True:
    os.write(file, b"x" * (1 << 20))
"""
ON_DISK = """
with open("/job/bomb", "wb") as file:
    while True:
        file.write(b"x" * (1 << 20))
"""
OF_MANY = """
import os, time
for _ in range(8):
    if not os.fork():
        kept = b"x" * (16 << 20)
        time.sleep(60)
time.sleep(60)
"""
DAEMON = f"""
import os, time
if not os.fork():
    os.setpgid(0, 0)
    if not os.fork():
        exec({PRIVATE!r})
    os._exit(0)
time.sleep(60)
"""
MEMORY_BOMBS = {
    "private": PRIVATE,
    "shared": SHARED,
    "a file that is only held open": HELD_ONLY,
    "a file system": ON_DISK,
    "of many processes": OF_MANY,
    "of a daemon": DAEMON,
}
if os.geteuid() != 0:  # then the runner may not look at what a process holds open
    del MEMORY_BOMBS["a file that is only held open"]


@pytest.mark.parametrize("bomb", MEMORY_BOMBS.values(), ids=MEMORY_BOMBS)
def test_a_memory_bomb(site: Site, bomb: str) -> None:
    job = site.run(bomb, shell="python", limits=SMALL)
    assert (job.status, job.signal) == ("OUT_OF_MEMORY", "SIGKILL")
    assert job.reason.startswith("stopped: ")
    assert job.reason.endswith(" MiB of memory used, 64 MiB allowed")
    assert 64 * MiB < job.peak_memory_bytes < 4096 * MiB
    print(f"overshoot: {job.peak_memory_bytes / MiB - 64:.0f} MiB after {job.wall_seconds:.2f} s")


@pytest.mark.parametrize("bomb", [FORKS, THREADS], ids=["forks", "threads"])
def test_a_bomb_of_processes(site: Site, bomb: str) -> None:
    job = site.run(bomb, shell="python", limits={**SMALL, "memory": 1024 * MiB})
    assert (job.status, job.signal) == ("FAILED", "SIGKILL")
    wanted = int(job.reason.removeprefix("stopped: ").removesuffix(" processes wanted, 32 allowed"))
    assert 32 < wanted <= 32 + 8
    assert job.wall_seconds < 5


def test_processor_time_of_all(site: Site) -> None:
    """Of many that live for a moment, of which none would be stopped by the kernel."""
    code = "while :; do (i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done) & (:); wait; done"
    job = site.run(code, limits={"cpu_seconds": 0.5})
    assert job.status == "TIMEOUT"
    assert job.reason.startswith("stopped: ")
    assert job.reason.endswith(" s of processor time used, 0.5 s allowed")
    assert 0.5 <= job.cpu_seconds < 1.5


def test_processor_time_of_those_that_nobody_waits_for(site: Site) -> None:
    """The kernel adds their time to no parent's."""
    code = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(20):
    child = os.fork()
    if not child:
        while time.process_time() < 0.4:
            pass
        os._exit(0)
    try:
        os.waitpid(child, 0)
    except ChildProcessError:
        pass
"""
    job = site.run(code, shell="python", limits={"cpu_seconds": 1})
    assert (job.status, job.reason[:9]) == ("TIMEOUT", "stopped: ")
    assert 1 <= job.cpu_seconds < 2


def test_processor_time_gives_a_chance_to_clean_up(site: Site) -> None:
    job = site.run("trap 'echo cleaned; exit 5' TERM; while :; do :; done", limits={"cpu_seconds": 0.3})
    assert (job.status, job.return_code, site.output(job)) == ("TIMEOUT", 5, b"cleaned\n")


def test_what_the_kernel_stops_names_its_limit(site: Site) -> None:
    job = site.run("exec head -c 3000000 /dev/zero > file", limits={"file_size": 2 * MiB})
    assert (job.status, job.reason) == ("FAILED", "killed by SIGXFSZ: a file larger than 2 MiB wanted")
    job = site.run("head -c 9000000 /dev/zero > file || exit 3", limits={"disk": 8 * MiB})
    assert (job.status, job.reason) == ("FAILED", "exit code 3; its disk was full: 8 MiB")
    assert 8 * MiB <= job.written_bytes < 9_000_000


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("exit 137", "exit code 137"),
        ("exit 124", "exit code 124"),
        ("sh -c 'kill -9 $$'; exit $?", "exit code 137"),
        ("kill -9 $$", "killed by SIGKILL from inside"),
        ("kill -XCPU $$", "killed by SIGXCPU from inside"),
    ],
)
def test_what_looks_like_a_limit_is_the_script_s_own(site: Site, code: str, reason: str) -> None:
    job = site.run(code)
    assert (job.status, job.reason) == ("FAILED", reason)


def test_a_script_that_ends_in_time_has_its_own_end(site: Site, runner: Service) -> None:
    """Though the runner comes to hear of it only when its time is over."""
    mark = f"0.3{time.monotonic_ns() % 10**9}"
    job_id = site.submit(f"sleep {mark}; exit 7", timeout=1.0)
    eventually(lambda: processes(mark))
    runner.send(signal.SIGSTOP)
    began = time.monotonic()
    try:
        eventually(lambda: not processes(mark))
        eventually(lambda: time.monotonic() - began > 1)
    finally:
        runner.send(signal.SIGCONT)
    job = site.final(job_id)
    assert (job.status, job.reason, job.return_code) == ("FAILED", "exit code 7", 7)


def test_memory_that_is_shared_counts_once(site: Site) -> None:
    code = """
import os, time
kept = b"x" * (48 << 20)
for _ in range(8):
    if not os.fork():
        time.sleep(0.4)
        os._exit(0)
for _ in range(8):
    os.wait()
"""
    job = site.run(code, shell="python", limits={**SMALL, "memory": 96 * MiB})
    assert (job.status, job.reason) == ("COMPLETED", "exit code 0")
    assert 48 * MiB < job.peak_memory_bytes < 96 * MiB


def test_what_is_used_is_told_of_all_processes(site: Site) -> None:
    code = """
import os, sys, time
for _ in range(3):
    if not os.fork():
        kept = b"x" * (20 << 20)
        while time.process_time() < 0.2:
            pass
        os.write(1, bytes(50_000))
        time.sleep(0.3)
        os._exit(0)
for _ in range(3):
    os.wait()
"""
    job = site.run(code, shell="python")
    assert job.status == "COMPLETED"
    assert 60 * MiB < job.peak_memory_bytes < 90 * MiB
    assert 0.6 <= job.cpu_seconds < 1.2
    assert job.written_bytes >= 150_000


def test_bombs_of_one_user_are_not_noticed_by_another(site: Site) -> None:
    mark = f"33{time.monotonic_ns() % 10**9}.5"
    bombs: list[dict[str, Any]] = [
        {"code": FORKS, "shell": "python", "limits": SMALL, "timeout": 30.0},
        {"code": PRIVATE, "shell": "python", "limits": SMALL, "timeout": 30.0},
        {"code": SHARED, "shell": "python", "limits": SMALL, "timeout": 30.0},
        {"code": "while :; do head -c 20000000 /dev/zero > x; rm x; done", "limits": {"disk": 16 * MiB}},
        {"code": "yes", "limits": {"output": MiB}},
        {"code": f"(sh -mc 'sleep {mark} >/dev/null 2>&1 &') ; sleep 60"},
        {"code": "while :; do :; done", "limits": {"cpu_seconds": 2}},
    ]
    ids = [site.submit(**{"timeout": 3.0, **bomb}) for bomb in bombs]
    other = site.transact(add_user)
    waits, end = [], time.monotonic() + 3
    while time.monotonic() < end:
        job = site.run("echo hello", user=other)
        assert (job.status, site.output(job)) == ("COMPLETED", b"hello\n")
        waits.append((job.started_at - job.created_at).total_seconds())
    assert max(waits) < 1, sorted(waits)[-5:]
    ends = [site.final(job_id) for job_id in ids]
    assert [job.status for job in ends[:3]] == ["FAILED", "OUT_OF_MEMORY", "OUT_OF_MEMORY"]
    assert {job.status for job in ends[3:]} == {"TIMEOUT"}
    assert processes(mark) == []
