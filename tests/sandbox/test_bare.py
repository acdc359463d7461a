"""Without walls, by explicit choice: jobs run, nothing of them stays, and nothing else is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from shell_service.sandbox import bare
from tests.sandbox.support import (
    LIMITS,
    alive,
    command,
    execute,
    finish,
    parent,
    read_line,
    run,
    sandbox,
    with_argument,
)
from tests.sandbox.test_kills import STAYERS, VICTIMS, output, played, strike
from tests.waiting import eventually


def folders() -> set[Path]:
    """Those of jobs, also of others' here."""
    return set(Path(bare.FOLDER).parent.glob(f"{Path(bare.FOLDER).name}*"))


@pytest.fixture
def mark() -> Iterator[str]:
    """An argument of `sleep`, of the jobs and of a process that is none; only that goes on."""
    text = f"100000.{uuid.uuid4().int}"
    bystander, before = subprocess.Popen(["sleep", text], start_new_session=True), folders()
    yield text
    try:
        eventually(lambda: with_argument(text) == [bystander.pid])
        eventually(lambda: folders() <= before)
    finally:
        bystander.kill()
        bystander.wait()


def test_a_job_runs_and_takes_its_files_and_processes_with_it(mark: str, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("kept")
    script = f"""
cat ../secrets/KEY; pwd; echo "$HOME" "$A" $1; ulimit -n; nice
mkdir -p a/b/c/d none; touch a/b/c/file none/file -- '-rf' 'new
line'; ln -s {tmp_path} link; ln {kept} hard 2>/dev/null; chmod 000 none a/b .
i=0; while [ $i -lt 40 ]; do mkdir deep && cd deep; i=$((i + 1)); done
setsid sleep {mark} & (setsid sh -c 'trap "" TERM; sleep {mark} & sleep {mark}' &) &
exit 7
"""

    async def main() -> None:
        async with sandbox(mode="none") as made:
            assert await made.self_test(LIMITS) is None
            facts = made.facts()
            assert (facts["sandbox"], facts["uids"], facts["limits"]["disk"]) == ("none", "shared", "none")
            launcher = await made.prepare(1)
            ran = await execute(launcher, script, args=("x",), env={"A": "y"}, secrets={"KEY": b"secret\n"})
            secret, folder, *rest = ran.stdout.decode().splitlines()
            assert (secret, rest) == ("secret", [f"{folder} y x", "256", "10"])
            assert folder.startswith(bare.FOLDER)
            assert ran.exit.return_code == 7
            assert not Path(folder).parent.exists()

    run(main())
    assert kept.read_text() == "kept"


@pytest.mark.parametrize("how", ["kill", "terminate", "close", "init"])
def test_an_end_that_it_does_not_want(how: str, mark: str) -> None:
    script = STAYERS.format(mark=mark).replace("trap", "trap ''; trap" if how == "terminate" else "trap", 1)

    async def main() -> None:
        async with sandbox(mode="none") as made:
            process = await (await made.prepare(1)).start(command("/bin/sh", script.encode()))
            process.go()
            await read_line(process.stdout)
            if how == "terminate":
                process.terminate()
                process.kill()
            elif how == "kill":
                process.kill()
            elif how == "close":
                await made.close()
            else:
                os.kill(process.pid, signal.SIGKILL)
            assert (await finish(process)).exit.signal == signal.SIGKILL

    run(main())


def test_terminate_ends_the_script_and_not_its_init(mark: str) -> None:
    async def main() -> None:
        async with sandbox(mode="none") as made:
            process = await (await made.prepare(1)).start(command("/bin/sh", f"echo; sleep {mark}; true".encode()))
            process.go()
            await read_line(process.stdout)
            process.terminate()
            ended = (await finish(process)).exit
            assert (ended.return_code, ended.signal) == (None, signal.SIGTERM)
            assert ended.cpu_seconds > 0

    run(main())


@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_before_and_after_go(victim: str, mark: str) -> None:
    with played("echo begun", "none") as play:
        gone = strike(victim, play)
        assert output(play.stdout) == b""
        eventually(lambda: not any(map(alive, gone)))
    with played(STAYERS.format(mark=mark), "none") as play:
        play.test.send(b"g")
        assert output(play.stdout, b"up\n") == b"up\n"
        eventually(lambda: len(with_argument(mark)) >= 8)
        gone = strike(victim, play)
        eventually(lambda: not any(map(alive, gone)) and len(with_argument(mark)) == 1)
        if victim == "init":
            assert play.test.recv(10) == b"ended"  # when its launcher has cleaned up


def test_what_a_dead_launcher_and_init_left_is_removed_by_the_next(mark: str) -> None:
    async def main() -> None:
        async with sandbox(mode="none") as made:
            process = await (await made.prepare(1)).start(command("/bin/sh", f"echo; exec sleep {mark}".encode()))
            process.go()
            await read_line(process.stdout)
            launcher, script = parent(process.pid), bare.descendants(process.pid)[0]
            os.kill(launcher, signal.SIGSTOP)
            for pid in (process.pid, launcher, script):
                os.kill(pid, signal.SIGKILL)
            await finish(process)
            (left,) = Path(bare.FOLDER).parent.glob(f"{Path(bare.FOLDER).name}{process.pid}-*")
            assert (await execute(await made.prepare(1), "echo fine")).stdout == b"fine\n"
            assert not left.exists()

    run(main())


def test_a_tree_is_removed_however_deep_it_is(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    top = tmp_path / "top"
    top.mkdir()
    before = os.getcwd()
    os.chdir(top)
    for number in range(1300):
        os.mkdir("x")
        if number in (0, 700):
            os.symlink(outside, f"link{number}")
            os.mkfifo("fifo")
            for count in range(1100):
                os.close(os.open(f"{count}", os.O_CREAT))
        os.chdir("x")
    os.chdir(before)
    os.chmod(top, 0)
    bare.remove(os.fsencode(top))
    assert not top.exists()
    assert (outside / "file").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user cannot mount")
def test_a_mount_is_not_entered(tmp_path: Path) -> None:
    for path in ("kept", "top/deep"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "kept/file").touch()
    subprocess.run(["mount", "--bind", tmp_path / "kept", tmp_path / "top/deep"], check=True)
    try:
        with pytest.raises(OSError, match="busy"):
            bare.remove(os.fsencode(tmp_path / "top"))
        assert (tmp_path / "kept/file").exists()
    finally:
        subprocess.run(["umount", tmp_path / "top/deep"], check=True)
