"""What a tree of processes uses, seen from outside: each byte once, whoever holds it, in whatever way."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

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
def tree(program: str, dots: int) -> Iterator[Tree]:
    """The children of a process that runs this program, when so many of them are done."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{START}\n{program}\ntime.sleep(60)"], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout
    try:
        assert len(process.stdout.read(dots)) == dots
        yield Tree(process.pid, [])
    finally:
        os.killpg(process.pid, 9)
        process.wait()
        process.stdout.close()


def memory(program: str, dots: int, enough: int = 0) -> float:
    """MiB that it uses beyond what so many idle children use."""
    with tree("\n".join(["fork(lambda: 0)"] * dots), dots) as idle:
        least = idle.read(enough).memory
    with tree(program, dots) as found:
        return (found.read(enough).memory - least) / MiB


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


def test_what_has_ended_uses_nothing() -> None:
    with tree("fork(lambda: 0)", 1) as found:
        pass
    assert found.read(0).processes == 0
    assert found.read(0).memory < MiB
