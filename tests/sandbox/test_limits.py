"""The limits that the kernel holds for a job by itself, and what it counts by user, each tried from inside."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pytest

from shell_service.limits import LEAST
from shell_service.sandbox import seccomp
from tests.sandbox.support import (
    CALL,
    LIMITS,
    PYTHON,
    MiB,
    calls,
    command,
    execute,
    fails,
    finish,
    job,
    lines,
    number,
    read_line,
    run,
    sandbox,
)


@pytest.mark.parametrize(("path", "size"), [("/job", 32), ("/tmp", 16), ("/dev/shm", 4)])
def test_file_systems_are_limited(path: str, size: int) -> None:
    ran = job(f"for n in 1 2 3; do dd if=/dev/zero of={path}/$n bs=1M count=20; done; du -sm {path}")
    assert b"No space left" in ran.stderr
    assert int(ran.stdout.split()[0]) == size
    assert int(lines(f"df --output=itotal {path} | tail -n 1")[0]) <= 1 << 16


def test_a_home_of_no_size_is_not_one_without_limit() -> None:
    ran = job("head -c 1M /dev/zero > /job/x; stat -c %s /job/x", limits=replace(LIMITS, disk=0))
    assert (b"No space left" in ran.stderr, ran.stdout) == (True, b"4096\n")


def test_limits_of_a_process() -> None:
    limits = replace(LIMITS, cpu_seconds=2.5)
    code = """
import json, resource
names = ("CPU", "DATA", "NPROC", "NOFILE", "FSIZE", "CORE", "MEMLOCK", "MSGQUEUE", "RTPRIO", "NICE")
numbers = [getattr(resource, f"RLIMIT_{name}") for name in names]
print(json.dumps([resource.getrlimit(number) for number in numbers]))
for number in numbers:
    soft, hard = resource.getrlimit(number)
    try:
        resource.setrlimit(number, (hard + 1, hard + 1))
    except ValueError:
        continue
    print("raised", number)
"""
    found = lines(code, PYTHON, limits=limits)
    data = 2 * limits.memory + 512 * MiB
    assert json.loads(found[0]) == [
        [4, 5], [data, data], [80, 80], [256, 256], [24 * MiB, 24 * MiB], [1, 1], [0, 0], [0, 0], [0, 0], [0, 0]
    ]  # fmt: skip
    assert found[1:] == []
    assert b"File too large" in job("trap '' XFSZ; dd if=/dev/zero of=/job/big bs=1M count=30").stderr
    assert job("dd if=/dev/zero of=/job/big bs=1M count=30; exit 9").exit.return_code == 9
    ended = job("kill -SEGV $$; ls")
    assert ended.exit.signal == signal.SIGSEGV


def test_few_open_files_are_enough_however_many_jobs_its_user_has() -> None:
    """Those that the sandbox itself needs do not count."""
    few = replace(LIMITS, open_files=int(LEAST["open_files"]))

    async def main() -> None:
        async with sandbox() as made:
            held = [
                await (await made.prepare(1)).start(command("/bin/sh", b"ulimit -n", limits=few)) for _ in range(20)
            ]
            for process in held:
                process.go()
            assert {(await finish(process)).stdout for process in held} == {b"%d\n" % few.open_files}

    run(main())


def test_memory_of_one_process_is_bounded_between_two_looks() -> None:
    code = "import mmap; mmap.mmap(-1, {} << 20, flags=mmap.MAP_PRIVATE); print('has it')"
    assert lines(code.format(900), PYTHON) == ["has it"]  # reserved, not used
    assert b"Cannot allocate memory" in job(code.format(1100), PYTHON).stderr


def test_processors_are_few_if_it_says_so_and_not_its_own_choice() -> None:
    code = "import os; print(len(os.sched_getaffinity(0)))"
    available = os.sched_getaffinity(0)
    assert lines(code, PYTHON, limits=replace(LIMITS, cpu=0.5)) == ["1"]
    assert lines(code, PYTHON) == [str(len(available))]
    choose = CALL + f"all = ctypes.create_string_buffer(b'\\xff' * 128)\nprint(call({number('sched_setaffinity')}, "
    assert lines(choose + "0, 128, ctypes.addressof(all)))", PYTHON) == ["EPERM"]


def test_fork_bombs_are_capped_each_and_spare_the_next_job() -> None:
    code = """
import os, signal
children = 0
try:
    while children < 5000:
        if not os.fork():
            signal.pause()
        children += 1
except BlockingIOError:
    pass
print(children, flush=True)
signal.pause()
"""

    async def main() -> list[int]:
        async with sandbox() as made:
            launcher = await made.prepare(1)
            bombs = [await launcher.start(command(PYTHON, code.encode())) for _ in range(2)]
            for bomb in bombs:
                bomb.go()
            children = [int(await read_line(bomb.stdout)) for bomb in bombs]
            assert (await execute(launcher, "echo fine")).stdout == b"fine\n"
            for bomb in bombs:
                bomb.kill()
                await finish(bomb)
            return children

    allowed = 64 + 16 - 2  # a quarter more than the limit, which is watched; of it the init and the script itself
    assert run(main()) == [allowed] * 2


def test_system_v_memory_is_limited_as_it_belongs_to_no_process() -> None:
    code = """
import ctypes
libc = ctypes.CDLL(None)
def count(make, most=5000):
    made = 0
    while made < most and make() >= 0:
        made += 1
    return made
print(libc.shmget(0, 5 << 20, 0o600), count(lambda: libc.shmget(0, 1 << 20, 0o600)))
print(count(lambda: libc.msgget(0, 0o600)), count(lambda: libc.semget(0, 100, 0o600)))
print(libc.semget(0, 251, 0o600))
"""
    assert lines(code, PYTHON) == ["-1 4", "32 40", "-1"]


def test_without_such_limits_there_is_no_system_v(monkeypatch: pytest.MonkeyPatch) -> None:
    program = seccomp.program
    monkeypatch.setattr(seccomp, "program", lambda *_: program(False))
    answers = calls(*((name, 0, 4096, 0o600) for name in seccomp.SYSTEM_V))
    assert set(answers) == {"ENOSYS"}


def test_a_job_is_the_first_to_go_when_memory_is_short_and_the_last_to_be_served() -> None:
    script = "for p in self 2 $$; do echo 0 > /proc/$p/oom_score_adj; done; cat /proc/self/oom_score_adj; nice"
    assert job(script).stdout == b"1000\n10\n"
    nicer = [("setpriority", 0, 0, value) for value in (-5, 9)]
    assert calls(*nicer, ("ioprio_set", 1, 0, 0), ("mlockall", 1)) == ["EACCES", "EACCES", "EPERM", "EPERM"]
    assert "Operation not permitted" in fails("exec chrt -f 1 true")
    assert lines("nice -n 5 nice") == ["15"]


def test_inotify_leaves_some_to_others() -> None:
    code = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
made = 0
while libc.inotify_init() >= 0:
    made += 1
print(made, errno.errorcode[ctypes.get_errno()])
"""
    assert lines(code, PYTHON) == ["32 EMFILE"]
