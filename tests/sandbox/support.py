"""A real sandbox for tests, and what they ask of a job."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pyseccomp

from baselayer.config import Bytes
from shell_service import settings
from shell_service.limits import JobLimits
from shell_service.sandbox import Command, Exit, Launcher, Process, Sandbox, kernel, root

T = TypeVar("T")

MiB = 1 << 20
OPTIONS = settings.Sandbox(
    mode="walls",
    uid_base=1_900_000_000,
    tmp_size=Bytes(16 * MiB),
    shm_size=Bytes(4 * MiB),
    max_launchers=8,
    launcher_idle_seconds=60,
)
LIMITS = JobLimits(
    memory=256 * MiB,
    processes=64,
    cpu=256,
    cpu_seconds=60,
    open_files=256,
    file_size=24 * MiB,
    disk=32 * MiB,
    output=MiB,
    artifacts=1 << 28,
)
PYTHON = next(path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if os.path.exists(path))
PATIENCE = 20.0
#: What comes of connecting to an abstract socket that another job of the user has made.
SCOPED = b"reached\n" if (_scope := kernel.socket_scope()) is None else b"Operation not permitted\n"
if _scope is not None:
    os.close(_scope)


@dataclass(frozen=True)
class Ran:
    """What came of a job."""

    exit: Exit
    stdout: bytes
    stderr: bytes
    artifacts: bytes


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of an asynchronous test, which may take a while, but not for ever."""

    async def limited() -> T:
        async with asyncio.timeout(60):
            return await coroutine

    return asyncio.run(limited())


@contextlib.asynccontextmanager
async def sandbox(groups: bool = True, **changes: object) -> AsyncIterator[Sandbox]:
    """One with these options; by default one whose jobs may begin sessions."""
    made = Sandbox(replace(OPTIONS, **changes), groups=groups)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        await made.close()


async def read(fd: int) -> bytes:
    """Everything that comes out of a pipe, which is closed then."""
    loop, chunks, ended = asyncio.get_running_loop(), [], asyncio.Event()

    def on_readable() -> None:
        with contextlib.suppress(BlockingIOError):
            chunks.append(os.read(fd, 65536))
            if not chunks[-1]:
                ended.set()

    loop.add_reader(fd, on_readable)
    try:
        async with asyncio.timeout(PATIENCE):
            await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    return b"".join(chunks)


async def read_line(fd: int) -> bytes:
    """The next line out of a pipe, which stays open."""
    line = b""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE):
        while not line.endswith(b"\n"):
            try:
                data = os.read(fd, 1)
            except BlockingIOError:
                readable = asyncio.Event()
                loop.add_reader(fd, readable.set)
                try:
                    await readable.wait()
                finally:
                    loop.remove_reader(fd)
                continue
            assert data, f"the pipe ended after {line!r}"
            line += data
    return line


async def finish(process: Process) -> Ran:
    """Reads a job's output and waits for its end."""
    said = await asyncio.gather(read(process.stdout), read(process.stderr), read(process.artifacts))
    async with asyncio.timeout(PATIENCE):
        return Ran(await process.wait(), *said)


def command(interpreter: str, script: bytes, limits: JobLimits = LIMITS, **others: Any) -> Command:
    """A command with limits."""
    return Command(interpreter, script, limits=limits, **others)


async def execute(launcher: Launcher, script: str | bytes, interpreter: str = "/bin/sh", **others: Any) -> Ran:
    process = await launcher.start(
        command(interpreter, script.encode() if isinstance(script, str) else script, **others)
    )
    process.go()
    return await finish(process)


def job(script: str | bytes, interpreter: str = "/bin/sh", **others: Any) -> Ran:
    """One job in a sandbox of its own."""

    async def main() -> Ran:
        async with sandbox() as made:
            return await execute(await made.prepare(1), script, interpreter, **others)

    return run(main())


def lines(script: str, interpreter: str = "/bin/sh", **others: Any) -> list[str]:
    """What a script that succeeds prints."""
    ran = job(script, interpreter, **others)
    assert ran.exit.return_code == 0, ran
    return ran.stdout.decode().splitlines()


def forbid_namespaces() -> None:
    """What a machine does that allows none: moves this process to where there can be no more of them."""
    kernel.unshare(kernel.CLONE_NEWUSER)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    kernel.limit_capabilities()


def mask_proc() -> None:
    """What a container does: hides a part of /proc, after which the kernel lets nobody mount it anew."""
    if os.geteuid() != 0:
        uid, gid = os.getuid(), os.getgid()
        kernel.unshare(kernel.CLONE_NEWUSER)
        root.map_user(uid, uid, gid)
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount(None, b"/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount(b"/dev/null", b"/proc/version", None, kernel.MS_BIND)


def alive(pid: int) -> bool:
    """Whether a process of the host runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def with_argument(text: str) -> list[int]:
    """The host's live processes that were started with this argument."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text.encode() in path.read_bytes().split(b"\0") and alive(int(path.parent.name)):
                found.append(int(path.parent.name))
    return found


CALL = """
import ctypes, errno, json, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(*map(ctypes.c_long, (number, *arguments)))
    return "worked" if result >= 0 else errno.errorcode[ctypes.get_errno()]
"""


def number(name: str) -> int:
    """A system call's number on this machine; negative where there is none."""
    return int(pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name))


def calls(*wanted: tuple[object, ...]) -> list[str]:
    """What each system call, given by name or number and with its arguments, answers inside."""
    resolved = [(number(name) if isinstance(name, str) else name, *rest) for name, *rest in wanted]
    code = CALL + f"print(json.dumps([call(*c) for c in {resolved!r}]))"
    return list(json.loads(lines(code, PYTHON)[0]))


def fails(script: str) -> str:
    """The complaint of a command that must not succeed."""
    ran = job(script)
    assert ran.exit.return_code, f"worked: {script}"
    return ran.stderr.decode()
