"""Nothing of a job outlives it, its launcher or its runner, and no script begins without the word."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from shell_service.sandbox import kill_leftover
from tests.sandbox.support import alive, command, finish, parent, read_line, run, sandbox, with_argument
from tests.waiting import eventually

# What tries to stay: each line a way out.
STAYERS = """
trap '' TERM INT HUP USR1
sleep {mark} &
nohup sleep {mark} &
setsid sleep {mark} &
(setsid sh -c 'trap "" TERM; sleep {mark} & sleep {mark}' &) &
sh -c 'trap "" TERM; sleep {mark}' &
sleep {mark} & kill -STOP $!
echo up
while :; do sleep {mark}; done
"""


@pytest.fixture
def mark() -> Iterator[str]:
    """An argument of `sleep` by which the host's processes of one test are known; none is left after it."""
    text = f"100000.{uuid.uuid4().int}"
    yield text
    assert with_argument(text) == []


@dataclass
class Played:
    """A runner in a process of its own, with one job that is held."""

    runner: subprocess.Popen[bytes]
    test: socket.socket
    stdout: int
    pid: int
    start_time: int

    @property
    def launcher(self) -> int:
        return parent(self.pid)


@contextlib.contextmanager
def played(script: str, mode: str = "walls") -> Iterator[Played]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(20)
    argv = [sys.executable, "-m", "tests.sandbox.play_runner", str(theirs.fileno()), mode, script]
    runner = subprocess.Popen(argv, pass_fds=[theirs.fileno()], cwd=Path(__file__).parent.parent.parent)
    theirs.close()
    try:
        body, fds, _, _ = socket.recv_fds(ours, 100, 1)
        os.set_blocking(fds[0], True)
        yield Played(runner, ours, fds[0], *struct.unpack("<iQ", body))
        os.close(fds[0])
    finally:
        runner.kill()
        runner.wait()
        ours.close()


def output(fd: int, until: bytes | None = None) -> bytes:
    """What comes out of a pipe until its end, or until something in it."""
    data = b""
    while until is None or until not in data:
        assert select.select([fd], [], [], 20)[0], f"the pipe is still open after {data!r}"
        more = os.read(fd, 4096)
        if not more:
            break
        data += more
    return data


def strike(victim: str, played: Played) -> list[int]:
    """Kills one of them; the processes that have to be gone for it."""
    launcher = played.launcher
    if victim == "init":
        os.kill(played.pid, signal.SIGKILL)
        return [played.pid]
    if victim == "runner of a stopped launcher":
        os.kill(launcher, signal.SIGSTOP)
    os.kill(launcher if victim == "launcher" else played.runner.pid, signal.SIGKILL)
    return [played.pid, launcher]


VICTIMS = ("init", "launcher", "runner", "runner of a stopped launcher")


@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_before_go(victim: str, mark: str) -> None:
    with played(f"echo begun; exec sleep {mark}") as play:
        gone = strike(victim, play)
        assert output(play.stdout) == b""  # it never began, and nobody has the pipe any more
        eventually(lambda: not any(map(alive, gone)))


@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_after_go(victim: str, mark: str) -> None:
    with played(STAYERS.format(mark=mark)) as play:
        play.test.send(b"g")
        assert output(play.stdout, b"up\n") == b"up\n"
        eventually(lambda: len(with_argument(mark)) >= 7)
        gone = strike(victim, play)
        eventually(lambda: not any(map(alive, gone)) and not with_argument(mark))
        assert output(play.stdout) == b""
        if victim in ("init", "launcher"):
            assert play.test.recv(10) == b"ended"  # the runner noticed


def test_a_runner_that_ends_without_the_word(mark: str) -> None:
    with played(f"echo begun; exec sleep {mark}") as play:
        play.test.shutdown(socket.SHUT_WR)
        assert output(play.stdout) == b""
        assert play.runner.wait(20) == 0
        eventually(lambda: not alive(play.pid))


@pytest.mark.parametrize("after_go", [False, True])
def test_kill(after_go: bool, mark: str) -> None:
    async def main() -> None:
        async with sandbox() as made:
            process = await (await made.prepare(1)).start(command("/bin/sh", STAYERS.format(mark=mark).encode()))
            if after_go:
                process.go()
                await read_line(process.stdout)
            process.kill()
            ran = await finish(process)
            assert (ran.exit.return_code, ran.exit.signal) == (None, signal.SIGKILL)
            assert ran.stdout == b""
            assert with_argument(mark) == []
            assert not alive(process.pid)
            for useless in (process.kill, process.terminate, process.go):
                useless()

    run(main())


def test_kill_of_an_init_that_does_not_answer(mark: str) -> None:
    async def main() -> None:
        async with sandbox() as made:
            process = await (await made.prepare(1)).start(command("/bin/sh", STAYERS.format(mark=mark).encode()))
            process.go()
            await read_line(process.stdout)
            os.kill(process.pid, signal.SIGSTOP)
            process.kill()
            assert (await finish(process)).exit.signal == signal.SIGKILL

    run(main())


def test_terminate_ends_a_script_that_does_not_mind(mark: str) -> None:
    async def main() -> None:
        async with sandbox() as made:
            launcher = await made.prepare(1)
            process = await launcher.start(command("/bin/sh", f"echo up; sleep {mark}; echo after".encode()))
            process.go()
            await read_line(process.stdout)
            process.terminate()
            ran = await finish(process)
            assert (ran.exit.signal, ran.stdout) == (signal.SIGTERM, b"")

    run(main())


def test_terminate_lets_a_script_clean_up(mark: str) -> None:
    script = f"trap 'echo cleaned; exit 8' TERM; echo up; sleep {mark} & wait"

    async def main() -> None:
        async with sandbox() as made:
            process = await (await made.prepare(1)).start(command("/bin/sh", script.encode()))
            process.go()
            await read_line(process.stdout)
            process.terminate()
            ran = await finish(process)
            assert (ran.exit.return_code, ran.stdout) == (8, b"cleaned\n")

    run(main())


def test_closing_the_sandbox_ends_all(mark: str) -> None:
    async def main() -> None:
        async with sandbox() as made:
            process = await (await made.prepare(1)).start(command("/bin/sh", STAYERS.format(mark=mark).encode()))
            process.go()
            await read_line(process.stdout)
            await made.close()
            assert (await finish(process)).exit.signal == signal.SIGKILL

    run(main())


def test_leftovers_are_known_by_their_start() -> None:
    process = subprocess.Popen(["sleep", "1000"])
    start_time = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
    try:
        assert not kill_leftover(process.pid, start_time + 1)
        assert process.poll() is None
        assert kill_leftover(process.pid, start_time)
        assert process.wait(20) == -signal.SIGKILL
        assert not kill_leftover(process.pid, start_time)
    finally:
        process.kill()


def test_the_start_time_of_a_job_is_its_inits(mark: str) -> None:
    async def main() -> None:
        async with sandbox() as made:
            process = await (await made.prepare(1)).start(command("/bin/sh", f"sleep {mark}".encode()))
            process.go()
            assert kill_leftover(process.pid, process.start_time)
            assert (await finish(process)).exit.signal == signal.SIGKILL

    run(main())
