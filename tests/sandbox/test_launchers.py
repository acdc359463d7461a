"""Launchers: one a user, kept while in use, replaced when dead; and the test of the sandbox by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from shell_service.sandbox import Command, Process, SandboxError, process, seccomp, uids
from shell_service.sandbox.launcher import CROWD, CROWD_NICE, FEW_NICE
from shell_service.sandbox.order import order
from shell_service.sandbox.protocol import AUTOGROUP, Order
from shell_service.sandbox.sandbox import _Kind
from tests.sandbox.support import (
    LIMITS,
    alive,
    command,
    execute,
    finish,
    forbid_namespaces,
    mask_proc,
    parent,
    run,
    sandbox,
)
from tests.waiting import eventually


async def gone(pid: int) -> None:
    await asyncio.to_thread(eventually, lambda: not alive(pid))


async def launcher_pid(made, user: int) -> int:  # type: ignore[no-untyped-def]
    held = await (await made.prepare(user)).start(command("/bin/sh", b""))
    pid = parent(held.pid)
    held.kill()
    await finish(held)
    return pid


def share_of(pid: int) -> int:
    """The nice value of its session."""
    return int(Path(f"/proc/{pid}/autogroup").read_text().split()[-1])


def test_one_launcher_a_user() -> None:
    async def main() -> None:
        async with sandbox() as made:
            first, second, other = await asyncio.gather(made.prepare(1), made.prepare(1), made.prepare(2))
            assert first is second is not other
            assert await launcher_pid(made, 1) == await launcher_pid(made, 1) != await launcher_pid(made, 2)

    run(main())


def test_the_longest_unused_makes_room_but_never_a_busy_one() -> None:
    async def main() -> None:
        async with sandbox(max_launchers=2) as made:
            busy = await (await made.prepare(1)).start(command("/bin/sh", b"echo fine"))
            two, three = await launcher_pid(made, 2), await launcher_pid(made, 3)
            await gone(two)
            assert alive(three)
            assert await launcher_pid(made, 3) == three
            busy.go()
            assert (await finish(busy)).stdout == b"fine\n"

    run(main())


def test_a_launcher_that_was_put_away_can_still_be_used() -> None:
    async def main() -> None:
        async with sandbox(max_launchers=1) as made:
            first = await made.prepare(1)
            await made.prepare(2)
            assert (await execute(first, "echo fine")).stdout == b"fine\n"

    run(main())


def test_an_idle_launcher_ends() -> None:
    async def main() -> None:
        async with sandbox(launcher_idle_seconds=0.2) as made:
            pid = await launcher_pid(made, 1)
            await gone(pid)
            held = await (await made.prepare(1)).start(command("/bin/sh", b"echo fine"))
            await asyncio.sleep(0.5)  # longer than idle ones live
            assert alive(parent(held.pid))
            held.go()
            assert (await finish(held)).stdout == b"fine\n"

    run(main())


def test_a_dead_launcher_is_replaced() -> None:
    async def main() -> None:
        async with sandbox() as made:
            pid = await launcher_pid(made, 1)
            os.kill(pid, signal.SIGKILL)
            await gone(pid)
            assert (await execute(await made.prepare(1), "echo fine")).stdout == b"fine\n"

    run(main())


def test_launchers_are_forked_from_one_process() -> None:
    """To start a program for each would hold up all jobs meanwhile, and take four times as long."""

    async def main() -> None:
        async with sandbox() as made:
            (spawner,) = {parent(await launcher_pid(made, user)) for user in (1, 2, 3)}
            assert parent(spawner) == os.getpid()

    run(main())


def test_a_dead_spawner_takes_its_launchers_with_it_and_is_replaced() -> None:
    async def main() -> None:
        async with sandbox() as made:
            process = await (await made.prepare(1)).start(command("/bin/sh", b"sleep 1000"))
            process.go()
            launcher = parent(process.pid)
            os.kill(parent(launcher), signal.SIGKILL)
            assert (await finish(process)).exit.lost
            await gone(launcher)
            await gone(process.pid)
            assert (await execute(await made.prepare(1), "echo fine")).stdout == b"fine\n"
            assert (await execute(await made.prepare(2), "echo fine")).stdout == b"fine\n"

    run(main())


@pytest.mark.parametrize("who", ["spawner", "launcher"])
def test_a_job_that_has_not_begun_when_it_dies_begins_all_the_same(who: str) -> None:
    async def main() -> None:
        async with sandbox() as made:
            launcher = await launcher_pid(made, 1)
            os.kill(launcher, signal.SIGSTOP)  # so that it has been asked to, and has not
            starting = asyncio.create_task((await made.prepare(1)).start(command("/bin/sh", b"echo fine")))
            await asyncio.sleep(0)
            os.kill(launcher if who == "launcher" else parent(launcher), signal.SIGKILL)
            process = await starting
            process.go()
            assert (await finish(process)).stdout == b"fine\n"

    run(main())


@pytest.mark.parametrize("turns", [1, 3])
def test_a_launcher_is_forked_though_the_spawner_has_just_died(turns: int) -> None:
    """Before it was asked, or after."""

    async def main() -> None:
        async with sandbox() as made:
            spawner = parent(await launcher_pid(made, 1))
            os.kill(spawner, signal.SIGSTOP)
            asked = asyncio.create_task(made.prepare(2))
            for _ in range(turns):
                await asyncio.sleep(0)
            os.kill(spawner, signal.SIGKILL)
            assert (await execute(await asked, "echo fine")).stdout == b"fine\n"

    run(main())


def test_a_spawner_that_hangs_is_replaced_and_keeps_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with sandbox() as made:
            launcher = await launcher_pid(made, 1)
            os.kill(parent(launcher), signal.SIGSTOP)
            monkeypatch.setattr(process, "PATIENCE", 0.3)
            with pytest.raises(SandboxError):
                await made.prepare(2)
            monkeypatch.undo()
            assert (await execute(await made.prepare(2), "echo fine")).stdout == b"fine\n"
            assert await launcher_pid(made, 1) == launcher
            os.kill(parent(launcher), signal.SIGCONT)

    run(main())


def test_a_signal_for_the_runner_s_group_is_not_for_its_jobs() -> None:
    async def main() -> None:
        async with sandbox() as made:
            spawner = parent(await launcher_pid(made, 1))
            assert os.getpgid(spawner) == spawner

    run(main())


def test_where_no_launcher_can_be_forked_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    cannot = "\n".join(("", "def fork(): raise OSError", "import os", "os.fork = fork", "main("))
    monkeypatch.setattr(process, "BOOT", process.BOOT.replace(" main(", cannot))

    async def main() -> None:
        async with sandbox() as made:
            with pytest.raises(SandboxError) as caught:
                await made.prepare(1)
            assert caught.value.detail == "no launcher could be forked"

    run(main())


def test_a_launcher_that_the_runner_lets_go_of_ends() -> None:
    async def main() -> None:
        async with sandbox() as made:
            launcher = await made.prepare(1)
            pid = await launcher_pid(made, 1)
            os.close(launcher._pidfd)
            launcher._pidfd = -1  # so that it is not killed, but only sees the socket's end
            launcher.close()
            await gone(pid)

    run(main())


def test_a_launcher_that_hangs_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PATIENCE", 0.3)

    async def main() -> None:
        async with sandbox() as made:
            pid = await launcher_pid(made, 1)
            os.kill(pid, signal.SIGSTOP)
            with pytest.raises(SandboxError):
                await (await made.prepare(1)).start(command("/bin/sh", b""))
            monkeypatch.setattr(process, "PATIENCE", 10)
            assert (await execute(await made.prepare(1), "echo fine")).stdout == b"fine\n"
            await gone(pid)

    run(main())


def test_a_start_that_is_given_up_leaves_nothing() -> None:
    async def main() -> None:
        async with sandbox() as made:
            launcher = await made.prepare(1)
            starts = [asyncio.create_task(launcher.start(command("/bin/sh", b""))) for _ in range(10)]
            await asyncio.sleep(0)
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            await asyncio.to_thread(eventually, lambda: not launcher.busy)
            assert (await execute(launcher, "echo fine")).stdout == b"fine\n"

    run(main())


def test_launchers_inherit_nothing() -> None:
    async def main() -> None:
        secret = os.open("/etc/hostname", os.O_RDONLY)
        os.set_inheritable(secret, True)
        os.environ["SECRET"] = "x"
        try:
            async with sandbox() as made:
                pid = await launcher_pid(made, 1)
                with contextlib.suppress(PermissionError):  # of a subordinate user
                    with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: ASYNC230
                        assert file.read() == b""
                    targets = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
                    assert not any("hostname" in target for target in targets)
        finally:
            os.close(secret)
            del os.environ["SECRET"]

    run(main())


def test_the_self_test_passes() -> None:
    async def main() -> str | None:
        async with sandbox() as made:
            return await made.self_test(LIMITS)

    assert run(main()) is None


@pytest.mark.parametrize(("base", "taken"), [(1000, "users"), (70_000, "subordinate ids")])
def test_uids_that_are_taken_are_not_taken_again(tmp_path: Path, base: int, taken: str) -> None:
    (tmp_path / "subuid").write_text("somebody:100000:65536\n# a comment\n")
    assert taken in (uids.Own(base).problem(tmp_path) or "")
    assert uids.Own(1_900_000_000).problem(tmp_path) is None


def test_the_largest_range_of_subordinate_ids_counts(tmp_path: Path) -> None:
    name, other = pwd.getpwuid(os.geteuid()).pw_name, "somebody"
    path = tmp_path / "subuid"
    path.write_text(f"{other}:1:999999\n{name}:100000:10\n{os.geteuid()}:200000:65536\n{name}:x:9\n{name}:300000:0\n")
    assert uids.largest_range(path) == (200_000, 65_536)
    path.write_text(f"{other}:1:999999\n")
    assert uids.largest_range(path) is uids.largest_range(tmp_path / "none") is None


def test_subordinate_uids_that_cannot_be_had_are_done_without_at_the_start_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = uids.Subordinate(100_000, 100_000, 65_536, ("/bin/false", "/bin/false"))
    monkeypatch.setattr(uids, "choose", lambda base: found)

    async def main() -> None:
        async with sandbox() as made:
            assert await made.self_test(LIMITS) is None
            assert made.facts()["uids"] == "shared"
            assert "jobs of all users share this uid" in caplog.text
            assert (await execute(await made.prepare(2), "id -u")).stdout == b"1000\n"
            made._uids = found  # had they worked at first, they would not be given up later
            made._end(_Kind(0))
            assert "/bin/false" in (await made.self_test(LIMITS) or "")
            assert made.facts()["uids"] == "subordinate"

    run(main())


def test_what_fails_once_for_another_reason_takes_nobody_s_uid(monkeypatch: pytest.MonkeyPatch) -> None:
    found = uids.Subordinate(100_000, 100_000, 65_536, ("/bin/false", "/bin/false"))
    monkeypatch.setattr(uids, "choose", lambda base: found)
    program, failures = seccomp.program, [OSError("it passes")]

    def fails_once(*allowed: bool) -> bytes:
        if failures:
            raise failures.pop()
        return program(*allowed)

    async def main() -> None:
        async with sandbox() as made:
            await made.self_test(LIMITS)
            assert made.facts()["uids"] == "subordinate"

    monkeypatch.setattr(seccomp, "program", fails_once)
    run(main())


def test_the_self_test_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> str | None:
        async with sandbox() as made:
            said = await made.self_test(LIMITS)
            assert made.facts()["missing"] == "libseccomp2"
            monkeypatch.undo()
            assert await made.self_test(LIMITS) is made.facts()["missing"] is None  # it was installed meanwhile
            return said

    def missing(*allowed: bool) -> bytes:
        raise ImportError("no libseccomp")

    monkeypatch.setattr(seccomp, "program", missing)
    assert "libseccomp" in (run(main()) or "")


def test_the_self_test_sees_a_wall_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> str | None:
        async with sandbox() as made:
            return await made.self_test(LIMITS)

    allow = seccomp.INSTRUCTION.pack(seccomp.RETURN, 0, 0, 0x7FFF0000)
    monkeypatch.setattr(seccomp, "program", lambda *allowed: allow)
    assert "filter" in (run(main()) or "")


@pytest.mark.parametrize(
    ("fault", "fallen"),
    [
        ("limits", "limit-of-open-files, limit-of-file-size, limit-of-processes, limit-of-cpu-seconds"),
        ("disk", "limit-of-disk"),
        ("environment", "environment"),
        ("secrets", "secrets"),
    ],
)
def test_the_self_test_sees_what_is_not_as_ordered(monkeypatch: pytest.MonkeyPatch, fault: str, fallen: str) -> None:
    def wrong(asked: Command) -> Order:
        made = order(asked)
        if fault == "limits":
            made.limits = {}
        elif fault == "disk":
            made.disk += 1 << 20
        elif fault == "environment":
            made.env.append(b"DB_PASSWORD=x")
        else:
            made.secrets = dict.fromkeys(made.secrets, b"x")
        return made

    monkeypatch.setattr(process, "order", wrong)

    async def main() -> str | None:
        async with sandbox() as made:
            return await made.self_test(replace(LIMITS, processes=16))

    assert f"do not stand: {fallen}. Needed" in (run(main()) or "")


@pytest.mark.parametrize(
    ("obstacle", "detail", "missing"),
    [
        (forbid_namespaces, "No space left", "user.max_user_namespaces"),
        (mask_proc, "mount proc: Operation not permitted", "a /proc without masks: a container"),
    ],
)
def test_where_no_sandbox_can_be_made_nothing_runs(obstacle: Callable[[], None], detail: str, missing: str) -> None:
    async def main() -> tuple[str, str]:
        async with sandbox() as made:
            return await made.self_test(LIMITS) or "", made.facts()["missing"] or ""

    pid = os.fork()
    if not pid:
        try:
            obstacle()
            said, needed = run(main())
            print(said, needed, sep="\n")
            os._exit(0 if detail in said and missing in said and missing in needed else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.skipif(not Path(AUTOGROUP).exists(), reason="this kernel does not share by sessions")
def test_a_session_has_its_share_though_others_set_theirs_just_then() -> None:
    """As ordinary users can do so ten times a second, all together."""

    async def main() -> None:
        async with sandbox() as made:
            others = asyncio.create_task(asyncio.to_thread(set_shares))
            launcher = await made.prepare(1)
            one = await launcher.start(command("/bin/sh", b"exit"))
            done.set()
            await others
            await asyncio.to_thread(eventually, lambda: share_of(parent(one.pid)) == FEW_NICE)
            one.go()
            await finish(one)

    def set_shares() -> None:
        while not done.is_set():
            # Not its turn, or it is in the first session of all, whose share nobody sets: that takes a turn, too.
            with contextlib.suppress(OSError):
                Path(AUTOGROUP).write_text("0")

    done = threading.Event()
    run(main())


@pytest.mark.skipif(not Path(AUTOGROUP).exists(), reason="this kernel does not share by sessions")
def test_a_crowd_of_jobs_has_less_of_the_processors_than_few() -> None:
    def nice(one: Process) -> int:
        return share_of(parent(one.pid))

    async def main() -> None:
        async with sandbox() as made:
            launcher = await made.prepare(1)
            held = [await launcher.start(command("/bin/sh", b"exit"))]

            async def until(wanted: int, act: Callable[[], Awaitable[object]]) -> None:
                """Where it could not be changed, as others did just before, it is tried again with the next job."""
                async with asyncio.timeout(20):
                    while nice(held[0]) != wanted:
                        await act()

            async def one_more() -> None:
                held.append(await launcher.start(command("/bin/sh", b"exit")))

            await until(FEW_NICE, lambda: execute(launcher, "exit"))
            await until(CROWD_NICE, one_more)
            assert len(held) > CROWD
            for one in held[1:]:
                one.go()
                await finish(one)
            await until(FEW_NICE, lambda: execute(launcher, "exit"))
            held[0].go()
            await finish(held[0])

    run(main())
