"""What a job does so that something of it may stay: nothing does, and nobody has to wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from shell_service.sandbox import Launcher, Process
from shell_service.sandbox.bare import descendants
from tests.sandbox.support import LIMITS, PYTHON, MiB, alive, command, execute, finish, parent, read_line, run, sandbox
from tests.waiting import eventually

SIZE = 64 * MiB + 28 * 1024  # of /job: no other mount on this machine has it
HELD = 50 + 50 + 4  # MiB of memory that no process maps, of it 50 in files
HOSTILE = """
import ctypes, fcntl, os, resource, signal, socket, struct, sys
most = int(sys.argv[1])

# memory
with open("/job/file", "wb") as file:
    file.write(b"x" * (50 << 20))
kept = os.open("/job/file", os.O_RDONLY)
os.unlink("/job/file")
for number in range(10):
    descriptor = os.memfd_create("x")
    os.pwrite(descriptor, b"x" * (5 << 20), 0)
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
ctypes.memset(libc.shmat(libc.shmget(0, 4 << 20, 0o600), None, 0), 1, 4 << 20)
ours, theirs = socket.socketpair()
socket.send_fds(ours, [b"x"], [descriptor, kept, theirs.fileno()])  # on their way for ever, in a circle

# files
os.mkdir("/job/shut")
os.mkfifo("/job/shut/fifo")
os.symlink("/", "/job/shut/link")
file = os.open("/job/immutable", os.O_CREAT)
try:
    fcntl.ioctl(file, 0x40086602, struct.pack("l", 0x10))  # FS_IOC_SETFLAGS, FS_IMMUTABLE_FL
    print("immutable")
except OSError:
    pass
os.chmod("/job/shut", 0)
try:
    for number in range(most):
        for folder in ("/tmp", "/dev/shm"):
            os.close(os.open(f"{folder}/" + "-rf \\n" * 20 + str(number), os.O_CREAT, 0))
except OSError:
    pass
try:
    for number in range(most):
        os.mkdir("x")
        os.chdir("x")
except OSError:
    pass
os.chdir("/")
os.chmod("/job/x", 0)

# processes
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
for number in range(50):
    if not os.fork():
        if number % 2:
            os.setsid()
        if number % 3:
            os.kill(os.getpid(), signal.SIGSTOP)
        while True:
            signal.sigwait({signal.SIGUSR2})
print(flush=True)
signal.sigwait({signal.SIGTERM})
"""


def shared_memory() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Shmem:")) * 1024


def mounted() -> bool:
    """Whether some process still has the home of such a job."""
    for path in Path("/proc").glob("[0-9]*/mountinfo"):
        with contextlib.suppress(OSError):  # it has ended, or is an init's
            if f"size={SIZE // 1024}k" in path.read_text():
                return True
    return False


def end(process: Process, way: str, launcher: int) -> None:
    if way == "kill":
        process.kill()
    elif way == "exit":
        process.terminate()
    else:
        os.kill(process.pid if way == "init" else launcher, signal.SIGKILL)


async def slowest(launcher: Launcher) -> float:
    """Seconds of the slowest of some jobs of the same user."""
    times = []
    for _ in range(5):
        began = time.monotonic()
        assert (await execute(launcher, "echo fine")).stdout == b"fine\n"
        times.append(time.monotonic() - began)
    return max(times)


@pytest.mark.parametrize(("way", "files"), [("exit", 1000), ("kill", 70_000), ("init", 1000), ("launcher", 1000)])
def test_nothing_stays_and_nobody_waits(way: str, files: int) -> None:
    async def main() -> None:
        async with sandbox() as made:
            launcher = await made.prepare(1)
            limits = replace(LIMITS, disk=SIZE, file_size=SIZE, open_files=1024)
            process = await launcher.start(command(PYTHON, HOSTILE.encode(), limits, args=(str(files),)))
            process.go()
            assert await read_line(process.stdout) == b"\n"
            pid, full = parent(process.pid), shared_memory()
            everything = descendants(pid)
            assert len(everything) == 52  # with the init
            assert mounted()
            began = time.monotonic()
            end(process, way, pid)
            others = None if way == "launcher" else asyncio.create_task(slowest(launcher))
            await finish(process)
            assert time.monotonic() - began < 5
            assert not any(map(alive, everything))
            assert not mounted()
            await asyncio.to_thread(eventually, lambda: shared_memory() < full - (HELD - 8) * MiB)
            if others:
                assert await others < 5
            await execute(await made.prepare(1), "exec true")

    run(main())
