"""What a script finds, and the truth about how it ended."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from shell_service.sandbox import SandboxError
from tests.sandbox.support import PYTHON, MiB, command, execute, finish, job, lines, read, read_line, run, sandbox
from tests.waiting import eventually


def test_output_and_exit() -> None:
    ran = job("echo out; echo err >&2; exit 3")
    assert (ran.stdout, ran.stderr) == (b"out\n", b"err\n")
    assert (ran.exit.return_code, ran.exit.signal) == (3, None)


def test_arguments_and_variables_arrive_byte_for_byte() -> None:
    awkward = ["", " ", "--", "-c", "a'b\"c$(id)`id`\\", "ä\n\t", "\udcff", "--bind / /"]
    code = "import os, sys; sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, sys.argv[1:] + [os.environ['V']])))"
    ran = job(code, PYTHON, args=tuple(awkward), env={"V": awkward[4] + awkward[5]})
    assert ran.stdout == b"\0".join(
        text.encode(errors="surrogateescape") for text in [*awkward, awkward[4] + awkward[5]]
    )


def test_the_environment_is_the_defaults_and_the_jobs_own() -> None:
    names = {line.partition("=")[0] for line in lines("exec env", env={"HOME": "/tmp", "MINE": "1"})}
    assert names - {"PWD", "OLDPWD", "_"} == {"PATH", "HOME", "TMPDIR", "LANG", "USER", "LOGNAME", "SHELL", "MINE"}
    assert lines('echo "$HOME"', env={"HOME": "/tmp"}) == ["/tmp"]


def test_variables_act_inside_only() -> None:
    # A loader option given to anything on the way would print to its own streams, or break it.
    ran = job("exec /bin/true", env={"LD_DEBUG": "statistics", "LD_PRELOAD": "/job/none.so", "PYTHONPATH": "/job"})
    assert ran.exit.return_code == 0
    assert b"LD_PRELOAD" in ran.stderr


@pytest.mark.parametrize("stdin", [b"", b"one\ntwo", b"\0\xff" * MiB])
def test_standard_input_then_its_end(stdin: bytes) -> None:
    assert job("exec cat", stdin=stdin).stdout == stdin


@pytest.mark.parametrize("script", [b"", b"# only a comment"])
def test_an_empty_script_succeeds(script: bytes) -> None:
    assert job(script).exit.return_code == 0


def test_the_script_is_what_was_sent_whatever_it_is() -> None:
    script = b"exec cat /run/job/script; \xff\r\n" + b"#" * (3 * MiB)
    assert job(b"exec cat /run/job/script\n" + script).stdout == b"exec cat /run/job/script\n" + script


def test_streams_can_be_opened_by_name() -> None:
    ran = job("echo a > /dev/stdout; echo b > /dev/stderr; cat /dev/stdin > /dev/fd/1", stdin=b"c\n")
    assert (ran.stdout, ran.stderr) == (b"a\nc\n", b"b\n")


@pytest.mark.parametrize(
    ("script", "code", "number"),
    [
        ("exit 137", 137, None),
        ("exit 255", 255, None),
        ("kill -9 $$", None, signal.SIGKILL),
        ("kill -TERM $$", None, signal.SIGTERM),
        ("kill -SEGV $$", None, signal.SIGSEGV),
        ("kill -9 -1; exit 4", 4, None),
        ("kill -9 1; exit 5", 5, None),
        ("kill -TERM 1; kill -INT 1; exit 6", 6, None),
        ("(kill -9 $(exec sh -c 'echo $PPID')); exit 7", 7, None),
    ],
)
def test_a_signal_is_told_from_an_exit_code(script: str, code: int | None, number: int | None) -> None:
    ended = job(script).exit
    assert (ended.return_code, ended.signal) == (code, number)


def test_a_broken_pipe_ends_a_program_as_usual() -> None:
    assert lines("yes | head -n 1; trap '' USR1; echo $?") == ["y", "0"]
    assert int(lines("sed -n 's/^SigIgn:.//p' /proc/self/status")[0], 16) & (1 << signal.SIGPIPE - 1) == 0


def test_an_interpreter_that_is_not_there() -> None:
    async def main() -> SandboxError:
        async with sandbox() as made:
            launcher = await made.prepare(1)
            with pytest.raises(SandboxError) as caught:
                await launcher.start(command("/bin/nosuch", b""))
            assert (await execute(launcher, "echo fine")).stdout == b"fine\n"  # the launcher is none the worse for it
            return caught.value

    assert "/bin/nosuch" in run(main()).detail


def test_arguments_beyond_what_the_kernel_takes() -> None:
    ran = job("echo never", args=("x" * 200_000,))
    assert ran.exit.return_code == 126
    assert b"Argument list too long" in ran.stderr


def test_many_variables() -> None:
    env = {f"V{number}": "x" * 1000 for number in range(500)}
    assert lines("echo ${#V499}", env=env) == ["1000"]


def test_a_job_that_closes_its_output_runs_on() -> None:
    async def main() -> None:
        async with sandbox() as made:
            process = await (await made.prepare(1)).start(command("/bin/sh", b"exec >&- 2>&-; read line; exit 9"))
            process.go()
            assert await asyncio.gather(read(process.stdout), read(process.stderr)) == [b"", b""]
            async with asyncio.timeout(20):
                assert (await process.wait()).return_code == 9

    run(main())


def test_a_background_child_with_the_pipe_is_gone_at_the_end() -> None:
    ran = job("sleep 1000 & nohup sleep 1000 & (setsid sleep 1000 &) & echo done")
    assert ran.stdout == b"done\n"
    assert ran.exit.return_code == 0


def test_what_was_used_counts_all_processes() -> None:
    spin = "python3 -c 'import time\nwhile time.process_time() < 0.3: pass'"
    assert 0.6 <= job(f"{spin} & {spin} & wait").exit.cpu_seconds < 1
    assert job("x = b'x' * (64 << 20)", PYTHON).exit.peak_memory_bytes > 64 * MiB > job("").exit.peak_memory_bytes
    write = "dd if=/dev/zero of=/job/x bs=1M count=7 2>/dev/null; head -c 3000000 /dev/zero | cat > /dev/null"
    written = job(f"sh -c '{write}'; # {'x' * MiB}").exit.written_bytes
    assert 7 * MiB + 2 * 3_000_000 <= written < 7 * MiB + 2 * 3_000_000 + 200_000
    assert job("exit 3").exit.written_bytes == 0


def test_resources_of_what_a_kill_ended_are_known() -> None:
    async def main() -> float:
        async with sandbox() as made:
            process = await (await made.prepare(1)).start(
                command("/bin/sh", b"n=0; while [ $n -lt 300000 ]; do n=$((n+1)); done; echo; sleep 1000")
            )
            process.go()
            await read_line(process.stdout)
            process.kill()
            return (await finish(process)).exit.cpu_seconds

    assert run(main()) > 0.05


def test_its_files_can_be_measured_and_their_memory_is_free_again_when_it_has_ended() -> None:
    fill = "for d in /job /tmp /dev/shm; do dd if=/dev/zero of=$d/x bs=1M count=3 2>/dev/null; done; seq 100 > /job/y"
    many = "import os\nfor n in range(3000): os.close(os.open(f'/job/{n}', os.O_CREAT))"

    def shared_memory() -> int:
        return next(int(line.split()[1]) for line in Path("/proc/meminfo").open() if line.startswith("Shmem:"))

    async def main() -> None:
        async with sandbox() as made:
            for interpreter, script in (("/bin/sh", fill + "; echo; read x < /dev/zero"), (PYTHON, many + "\nprint()")):
                process = await (await made.prepare(1)).start(command(interpreter, script.encode()))
                empty = [os.fstatvfs(fd) for fd in process.file_systems]
                assert [round(fs.f_blocks * fs.f_frsize / MiB) for fs in empty] == [32, 16, 4]
                process.go()
                if interpreter != PYTHON:
                    await read_line(process.stdout)
                    full = zip(empty, (os.fstatvfs(fd) for fd in process.file_systems), strict=True)
                    used = [((a.f_bfree - b.f_bfree) * b.f_frsize, a.f_ffree - b.f_ffree) for a, b in full]
                    assert used == [(3 * MiB + 4096, 2), (3 * MiB, 1), (3 * MiB, 1)]
                    before = shared_memory()
                    process.terminate()
                await finish(process)
                assert process.file_systems == ()
            assert shared_memory() < before - 8 * 1024

    run(main())


def test_many_at_once() -> None:
    async def main() -> None:
        async with sandbox() as made:

            async def one(number: int) -> None:
                launcher = await made.prepare(number % 3 + 1)
                assert (await execute(launcher, f"echo {number}")).stdout == b"%d\n" % number

            await asyncio.gather(*map(one, range(60)))

    run(main())


def test_nothing_stays_open_in_the_runner() -> None:
    async def main() -> None:
        async with sandbox() as made:
            launcher = await made.prepare(1)
            before = len(os.listdir("/proc/self/fd"))
            for number in range(20):
                await execute(launcher, "echo", stdin=b"x" * number)
                with pytest.raises(SandboxError):
                    await launcher.start(command("/bin/nosuch", b""))
            eventually(lambda: len(os.listdir("/proc/self/fd")) == before)

    run(main())
