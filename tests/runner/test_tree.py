"""What a tree of processes uses, seen from outside: each byte once, whoever holds it, in whatever way."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from shell_service.sandbox.gauge import Usage
from shell_service.sandbox.tree import Tree
from tests.waiting import eventually

MiB = 1 << 20
START = """
import mmap, os, socket, sys, threading, time
MiB = 1 << 20
def fork(work):
    if not os.fork():
        work()
        done()
def done():
    os.write(1, b".")
    time.sleep(60)
def private(size):
    global kept
    kept = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    touch(kept)
def touch(area):
    for at in range(0, len(area), 4096):
        area[at] = 1
def file(size):
    descriptor = os.memfd_create("play")
    os.write(descriptor, b"x" * size)
    return descriptor
"""


@contextmanager
def looking(program: str) -> Iterator[tuple[subprocess.Popen[bytes], Tree]]:
    """A process that runs this program, and its children."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{START}\n{program}\ntime.sleep(60)"], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout
    try:
        yield process, Tree(process.pid, [])
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
        process.stdout.close()


@contextmanager
def tree(program: str, dots: int) -> Iterator[Tree]:
    """The children of a process that runs this program, when so many of them are done."""
    with looking(program) as (process, found):
        assert process.stdout
        assert len(process.stdout.read(dots)) == dots
        # What they touch on their way to sleep is shared by one less, or is new.
        eventually(lambda: "R" not in states(process.pid))
        yield found


def states(pid: int) -> str:
    """The states of a process and all below it, as in ``/proc/<pid>/stat``; nothing of one that has gone."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return state + "".join(states(int(child)) for child in children)


def all_seen(found: Tree, enough: int = 0) -> Usage:
    """What it uses, when it has been looked at as often as that takes."""
    for _ in range(200):
        if not (usage := found.read(enough)).unseen:
            return usage
    raise AssertionError(f"not all seen after {usage.unseen} s")


def memory(program: str, dots: int, enough: int = 0) -> float:
    """MiB that it uses beyond what so many idle children use."""
    with tree("\n".join(["fork(lambda: 0)"] * dots), dots) as idle:
        least = all_seen(idle, enough).memory
    with tree(program, dots) as found:
        return (all_seen(found, enough).memory - least) / MiB


COPIES = "def copies():\n    private(64 * MiB)\n    for _ in range(3): fork(lambda: 0)\nfork(copies)"
SHARED = """
def shared():
    area = mmap.mmap(-1, 64 * MiB)
    for _ in range(3):
        fork(lambda: touch(area))
fork(shared)
"""
HELD = "def hold():\n    global kept\n    kept = file(64 * MiB)\nfork(hold)"
MAPPED = HELD.replace("file(64 * MiB)", "mmap.mmap(file(64 * MiB), 64 * MiB); touch(kept)")
CHANGED = MAPPED.replace("64 * MiB);", "64 * MiB, mmap.MAP_PRIVATE);")


@pytest.mark.parametrize(
    ("program", "dots", "expected"),
    [
        ("fork(lambda: private(64 * MiB))", 1, 64),
        ("for _ in range(4): fork(lambda: private(16 * MiB))", 4, 64),
        (COPIES, 4, 64),
        (SHARED, 4, 64),
        (HELD, 1, 64),
        (MAPPED, 1, 64),
        (CHANGED, 1, 128),
    ],
    ids=["private", "of many", "copied on write", "shared", "in a file", "in a file, mapped", "in a file, and changed"],
)
def test_memory_is_counted_once(program: str, dots: int, expected: int) -> None:
    assert expected * 0.97 < memory(program, dots) < expected * 1.1


OPEN_FILES = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (4100, 4100))
kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(4000)]
for _ in range(39):
    fork(lambda: 0)
"""
MAPPINGS = """
descriptor = file(8192)
kept = [mmap.mmap(descriptor, 4096, offset=number % 2 * 4096) for number in range(500)]
for area in kept:
    area[0]
for _ in range(39):
    fork(lambda: [area[0] for area in kept])
"""
MUCH = {"open files": OPEN_FILES, "mappings": MAPPINGS}


@pytest.mark.parametrize("program", MUCH.values(), ids=MUCH)
def test_no_look_takes_long_and_all_is_seen_by_and_by(program: str) -> None:
    """A tenth of what it would take at once. What one process has for itself is seen in the first look."""
    with tree(f"{program}\ndef last(): private(32 * MiB); file(64 * MiB)\nfork(last)", 40) as found:
        looks = list(looks_at(found))
    assert max(seconds for _, seconds in looks) < 0.06
    assert len(looks) > 5
    first, last = looks[0][0], looks[-1][0]
    assert first.memory > 32 * MiB
    assert 96 * MiB < last.memory < 144 * MiB  # of each of the others some, too


@pytest.mark.parametrize("program", MUCH.values(), ids=MUCH)
def test_a_look_that_nobody_goes_on_with_leaves_nothing_open(program: str) -> None:
    before = os.listdir("/proc/self/fd")
    with tree(program, 39) as found:
        for _ in range(3):
            assert found.read(0).unseen
        found.forget()
    assert os.listdir("/proc/self/fd") == before


def test_a_look_does_not_wait_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no processor time, but others wait, too."""

    def waits(*_: object) -> Iterator[int]:
        while True:
            time.sleep(0.02)
            yield 0

    monkeypatch.setattr(Tree, "_memory", waits)
    with tree("fork(lambda: 0)", 1) as found:
        began = time.monotonic()
        first, second = found.read(0), found.read(0)
    assert time.monotonic() - began < 1
    assert 0 < first.unseen < second.unseen


def test_who_maps_his_memory_over_and_over_is_not_asked_for_his_share() -> None:
    """It would take the kernel seconds in a single call. All that he has mapped counts instead."""
    program = """
def over_and_over():
    global kept
    descriptor = file(32 * MiB)
    kept = [mmap.mmap(descriptor, 32 * MiB, flags=mmap.MAP_SHARED | 0x8000) for _ in range(40)]  # MAP_POPULATE
fork(over_and_over)
"""
    with tree(program, 1) as found:
        looks = list(looks_at(found))
    assert max(seconds for _, seconds in looks) < 0.06
    assert looks[-1][0].memory > 40 * 32 * MiB


def looks_at(found: Tree) -> Iterator[tuple[Usage, float]]:
    """Looks until all is seen; with each, how many seconds of processor time it took."""
    for _ in range(200):
        began = time.thread_time()
        usage = found.read(0)
        yield usage, time.thread_time() - began
        if not usage.unseen:
            break


def test_threads_and_orphans_count() -> None:
    """Of a process whose parent has died the init is the parent, if it is one."""
    program = """
import ctypes
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER, as inits are
def threads():
    for _ in range(5):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
def orphan():
    fork(lambda: 0)
    os._exit(0)
fork(threads)
if not os.fork():
    orphan()
os.wait()
"""
    with tree(program, 2) as found:
        eventually(lambda: found.read(0).processes == 6 + 1)  # when the one between has gone


def test_a_crowd_is_told_at_once_and_never_with_more_memory_than_it_has() -> None:
    """Copies of a process share all that neither has changed."""
    with tree(COPIES, 4) as found:
        known, crowd = all_seen(found), found.read(0, most=3)
        assert crowd.processes == known.processes == 4
        assert 64 * MiB < crowd.memory <= known.memory
        assert (crowd.cpu_seconds, crowd.unseen) == (0, 0)
        assert all_seen(found).memory == known.memory


def test_processor_time_counts_of_the_living_and_of_the_dead() -> None:
    program = """
def burn():
    while time.process_time() < 0.5:
        pass
def dead():
    burn()
    os._exit(0)
def burnt():
    fork_and_wait()
    burn()
def fork_and_wait():
    if not os.fork():
        dead()
    os.wait()
fork_and_wait()
fork(burnt)
"""
    with tree(program, 1) as found:
        assert 1.4 < found.read(0).cpu_seconds < 1.9


def test_processor_time_counts_of_those_that_nobody_waits_for() -> None:
    program = """
import signal
def ignore():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in range(4):
        child = os.fork()
        if not child:
            while time.process_time() < 0.3:
                pass
            os._exit(0)
        try:
            os.waitpid(child, 0)
        except ChildProcessError:
            pass
if not os.fork():
    ignore()
    done()
"""
    with looking(program) as (process, found):
        used = 0.0
        while not select.select([process.stdout], [], [], 0.02)[0]:
            used = max(used, found.read(1 << 40).cpu_seconds)
    assert 0.9 < used < 1.3


STORM = """
import ctypes, random
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER, as inits are
def burn():
    end = time.process_time() + random.random() * 0.03
    while time.process_time() < end:
        pass
def some(depth):
    burn()
    for _ in range(random.randrange(4) if depth else 0):
        if not os.fork():
            some(depth - 1)
            os._exit(0)
        if random.random() < 0.7:
            os.wait()
for number in range(12):
    random.seed(number)
    if not os.fork():
        some(3)
        os._exit(0)
    burn()
    try:
        while os.waitpid(-1, os.WNOHANG if number % 3 else 0)[0]:
            pass
    except ChildProcessError:
        pass
os.write(1, b".")
try:
    while True:
        os.wait()
except ChildProcessError:
    os._exit(0)
"""


def test_processor_time_never_counts_twice() -> None:
    """Of parents and children who end, in every order, while they are looked at."""
    with looking(STORM) as (process, found):
        used = [found.read(1 << 40).cpu_seconds]
        while not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            used.append(found.read(1 << 40).cpu_seconds)
        _, _, of_all = os.wait4(process.pid, 0)
    assert used == sorted(used)
    assert 0.1 < used[-1] < of_all.ru_utime + of_all.ru_stime


def test_what_has_ended_uses_nothing() -> None:
    with tree("fork(lambda: 0)", 1) as found:
        pass
    assert found.read(0).processes == 0
    assert found.read(0).memory < MiB
