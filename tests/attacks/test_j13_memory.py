"""J13: memory without end, in every place where a job can have some."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.attacks.jobs import ended, findings, running, submit
from tests.attacks.tools import memory_of
from tests.client import Person
from tests.database import Transactions
from tests.stack import Stack

MiB = 1 << 20
MEMORY = 48 * MiB
# Each takes more by and by, as those do that leak; then it waits to be ended.
BOMBS = {
    "its own": "kept = [bytearray(os.urandom(1)) * MiB for n in range(200)]",
    "at once": "kept = b'x' * (200 * MiB)",
    "shared": "import mmap\npage = mmap.mmap(-1, 200 * MiB)\n"
              "for n in range(0, 200 * MiB, MiB): page[n:n + MiB] = b'x' * MiB",
    "of many": "for n in range(6):\n if not os.fork(): kept = b'x' * (20 * MiB); time.sleep(100)",
    "inherited": "kept = bytearray(30 * MiB)\n"
                 "for n in range(4):\n if not os.fork(): kept[::4096] = kept[1::4096]; break",
    "threads": "import threading\ndef fill(): kept.append(b'x' * (20 * MiB)); time.sleep(100)\nkept = []\n"
               "for n in range(6): threading.Thread(target=fill).start()",
    "/tmp": "write('/tmp/x', 60)",
    "/job": "write('/job/x', 60)",
    "both and its own": "write('/tmp/x', 20); write('/dev/shm/x', 10); kept = b'x' * (25 * MiB)",
    "deleted files": "fd = os.open('/tmp/x', os.O_RDWR | os.O_CREAT); os.unlink('/tmp/x')\n"
                     "for n in range(60): os.write(fd, b'x' * MiB)",
    "mapped files": "import mmap\nfd = os.open('/tmp/x', os.O_RDWR | os.O_CREAT); os.truncate(fd, 60 * MiB)\n"
                    "page = mmap.mmap(fd, 60 * MiB); page[::4096] = page[1::4096]",
    "memory files": "fds = [os.memfd_create('x') for n in range(60)]\nfor fd in fds: os.write(fd, b'x' * MiB)",
    "a memory file, mapped": "import mmap\nfd = os.memfd_create('x'); os.truncate(fd, 60 * MiB)\n"
                             "page = mmap.mmap(fd, 60 * MiB); os.close(fd); page[::4096] = page[1::4096]",
    "page tables": "import mmap\npage = mmap.mmap(-1, 1 << 37, flags=0x4022, prot=1)\n"
                   "for n in range(0, 1 << 37, 1 << 21): page[n]",
    "children that are gone": "for n in range(60):\n if not os.fork(): write(f'/tmp/{n}', 1); os._exit(0)\n os.wait()",
}  # fmt: skip
# What no process holds, and only the kernel itself can count. Where it does not, time ends it.
HIDDEN = {
    "shared, let go of": "import mmap\npage = mmap.mmap(-1, 60 * MiB)\n"
                         "for n in range(0, 60 * MiB, MiB): page[n:n + MiB] = b'x' * MiB; page.madvise(4)",
}  # fmt: skip
if os.geteuid() != 0:  # then the runner may not look at what a process holds open
    HIDDEN["memory files"] = BOMBS.pop("memory files")
END = re.compile(r"OUT_OF_MEMORY: (killed by SIGKILL from inside; |stopped: ).* of memory used, 48 MiB allowed")
BEGIN = """
import time
MiB = 1 << 20
def write(path, count):
    with open(path, "wb") as file:
        for n in range(count):
            file.write(b"x" * MiB)
"""

# Hundreds of thousands of open files, each of which could be one in memory.
CROWD = """
import os, time
kept = [os.open("/dev/null", os.O_RDONLY) for n in range(4000)]
for n in range(100):
    if not os.fork():
        time.sleep(100)
print("up", flush=True)
time.sleep(100)
"""


def test_it_is_ended_for_that(stack: Stack, alice: Person, bob: Person) -> None:
    before, size = stack.pids(), memory_of(stack, "runner", "app")
    bombs = {
        name: submit(
            alice, f"{BEGIN}{code}\ntime.sleep(100)", limits={"memory": MEMORY, "disk": 2 * MEMORY}, timeout=20
        )
        for name, code in BOMBS.items()
    }
    ends = {name: (record := ended(alice, bomb))["status"] + ": " + record["reason"] for name, bomb in bombs.items()}
    assert {name: end for name, end in ends.items() if not END.fullmatch(end)} == {}
    assert bob.api.submit("echo fine", wait=5)["status"] == "COMPLETED"
    assert stack.pids() == before
    assert memory_of(stack, "runner", "app") - size < 16 * MiB


def test_who_has_much_to_look_at_hides_nobody_else(alice: Person, bob: Person) -> None:
    bomb = f"{BEGIN}{BOMBS['its own']}\ntime.sleep(100)"
    with running(alice, CROWD, shell="python", limits={"open_files": 4096, "processes": 128}):
        for _ in range(3):
            record = ended(bob, submit(bob, bomb, limits={"memory": MEMORY}))
            assert record["status"] == "OUT_OF_MEMORY"
            assert record["wall_seconds"] < 1.5


def test_what_is_allowed_can_be_had(alice: Person) -> None:
    for code in (
        "kept = b'x' * (24 * MiB)",
        "write('/tmp/x', 24)",
        "kept = bytearray(20 * MiB)\nfor n in range(2): os.fork()",
    ):
        job = submit(alice, f"{BEGIN}{code}\ntime.sleep(0.5)", limits={"memory": MEMORY}, wait=20)
        assert (job["status"], job["stderr"]) == ("COMPLETED", ""), code


def test_what_only_the_kernel_can_count(database: Transactions, alice: Person) -> None:
    """Ended for that where control groups are delegated; elsewhere by its time, and then nothing is left of it."""
    limits = {"memory": MEMORY, "cpu_seconds": 10}
    jobs = {
        name: submit(alice, f"{BEGIN}{code}\ntime.sleep(100)", limits=limits, timeout=1.5)
        for name, code in HIDDEN.items()
    }
    ends = {name: ended(alice, job)["status"] for name, job in jobs.items()}
    hard = database.scalar("SELECT facts #>> '{limits,memory}' FROM runner") == "hard"
    assert set(ends.values()) <= ({"OUT_OF_MEMORY"} if hard else {"OUT_OF_MEMORY", "TIMEOUT"})


def test_what_the_kernel_holds_for_it_is_bounded(alice: Person) -> None:
    """Pipes, sockets, and descriptors on their way belong to no process. Each kind has a bound of its own."""
    code = """
import array, socket
def pipes():
    total = 0
    while True:
        try:
            reader, writer = os.pipe2(os.O_NONBLOCK)
            import fcntl
            try:
                fcntl.fcntl(writer, 1031, 1 << 20)
            except OSError:
                pass
            while True:
                total += os.write(writer, b"x" * 65536)
        except BlockingIOError:
            continue
        except OSError as error:
            return [name_of(error), total]
def sockets():
    total = 0
    while True:
        try:
            one, other = socket.socketpair()
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
            while True:
                total += one.send(b"x" * 65536)
        except BlockingIOError:
            kept.append((one, other))
        except OSError as error:
            return [name_of(error), total]
kept = []
def flying():
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.setblocking(False)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
    count = 0
    while True:
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(50)]
        try:
            socket.send_fds(one, [b"x"], fds)
            count += 50
        except OSError as error:
            return [name_of(error), count]
        finally:
            for fd in fds:
                os.close(fd)
for act in (pipes, sockets, flying):
    child = os.fork()
    if not child:
        tell(act.__name__, act)
        os._exit(0)
    os.wait()
"""
    found = findings(alice, code, limits={"open_files": 128, "memory": 512 * MiB})
    assert found["pipes"][0] in ("EMFILE", "EPERM")
    assert found["pipes"][1] <= 96 * MiB
    assert found["sockets"][0] == "EMFILE"
    most = int(Path("/proc/sys/net/core/wmem_max").read_text())  # the kernel allows twice that
    assert found["sockets"][1] <= 64 * (2 * most + 65_536)
    assert found["flying"][0] in ("ETOOMANYREFS", "EAGAIN")
    assert found["flying"][1] <= 128 + 2 * 50
