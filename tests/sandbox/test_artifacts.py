"""What a job leaves is kept, and nothing else: whatever it puts there to be followed."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
import time
from dataclasses import replace

import pytest

from shell_service.sandbox import Exit, process
from tests.sandbox.support import LIMITS, Ran, command, job, read, read_line, run, sandbox
from tests.waiting import eventually


def files(ran: Ran) -> dict[str, bytes]:
    """What was kept, as any tar shows it."""
    if not ran.artifacts:
        return {}
    with tarfile.open(fileobj=io.BytesIO(ran.artifacts), mode="r:") as tar:
        found = {}
        for member in tar:
            assert member.isreg()
            content = tar.extractfile(member)
            assert content is not None
            found[member.name] = content.read()
        return found


def counts(ran: Ran) -> tuple[int, int | None]:
    return ran.exit.artifacts, ran.exit.left_out


def test_files_are_kept_with_their_folders() -> None:
    long = "x" * 120 + "/" + "y" * 120
    ran = job(
        f"mkdir -p artifacts/a/b artifacts/{'x' * 120} artifacts/empty\n"
        "printf one > artifacts/1\nprintf two > artifacts/a/b/2\n"
        f"printf long > artifacts/{long}\nhead -c 70000 /dev/zero > artifacts/zeros\n: > artifacts/nothing\n"
        "printf ä > artifacts/ä; chmod +x artifacts/1; echo done; exit 3"
    )
    assert (ran.exit.return_code, ran.stdout) == (3, b"done\n")
    assert files(ran) == {
        "1": b"one",
        "a/b/2": b"two",
        long: b"long",
        "zeros": bytes(70000),
        "nothing": b"",
        "ä": "ä".encode(),
    }
    assert counts(ran) == (6, 0)
    with tarfile.open(fileobj=io.BytesIO(ran.artifacts), mode="r:") as tar:
        modes = {member.name: (member.mode, member.uid) for member in tar}
        assert abs(tar.getmember("1").mtime - time.time()) < 60
    assert (modes["1"], modes["nothing"]) == ((0o755, 0), (0o644, 0))


def test_without_artifacts_nothing_comes() -> None:
    ran = job("echo done")
    assert (ran.artifacts, counts(ran)) == (b"", (0, 0))


@pytest.mark.parametrize("target", ["/etc", "/", "/job", "/run/job", "/proc/self", "../..", "other"])
def test_no_link_is_followed(target: str) -> None:
    """Neither the folder itself, nor one in it, nor a file."""
    ran = job(f"mkdir other; echo x > other/x; ln -s {target} artifacts")
    assert (files(ran), counts(ran)) == ({}, (0, 1))
    ran = job(f"mkdir artifacts other; echo x > other/x; cd artifacts; ln -s {target} in; ln -s /etc/passwd passwd")
    assert (files(ran), counts(ran)) == ({}, (0, 2))


def test_what_is_no_file_is_left_out() -> None:
    ran = job(
        "mkdir artifacts && cd artifacts && mkfifo fifo && echo fine > file && echo shut > shut && chmod 0 shut\n"
        "python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('socket')\"\n"
        "mkdir closed; echo x > closed/x; chmod 0 closed"
    )
    assert files(ran) == {"file": b"fine\n"}
    assert counts(ran) == (1, 4)
    ran = job("mkdir artifacts; echo x > artifacts/x; chmod 0 artifacts")
    assert (files(ran), counts(ran)) == ({}, (0, 1))


def test_names_that_cannot_be_told_are_left_out() -> None:
    names = [r"new\nline", r"tab\t", r"\033[2J", r"\377", r"\342\200\250", r"\342\200\256", r"back\\\\slash"]
    script = "mkdir artifacts && cd artifacts\n" + "".join(f"touch \"$(printf '{name}x')\"\n" for name in names)
    ran = job(f"{script}touch fine; ls | wc -l")
    assert list(files(ran)) == ["fine"]
    assert counts(ran) == (1, len(names))
    deep, long = "d/" * 15, "/".join(["x" * 99] * 3)
    ran = job(f"mkdir artifacts; cd artifacts; mkdir -p {deep}d {long}; touch {deep}fine {deep}d/deep {long}/x")
    assert list(files(ran)) == [f"{deep}fine"]
    assert counts(ran) == (1, 2)


def test_no_more_than_may_be_is_kept() -> None:
    limits = replace(LIMITS, artifacts=100_000)
    script = "mkdir artifacts; cd artifacts; head -c 60000 /dev/zero > a; head -c 60000 /dev/zero > b; echo c > c"
    ran = job(script, limits=limits)
    assert (list(files(ran)), counts(ran)) == (["a", "c"], (2, 1))
    assert len(ran.artifacts) <= 100_000
    ran = job("mkdir artifacts; cd artifacts; truncate -s 20M huge; echo x > x", limits=limits)
    assert (list(files(ran)), counts(ran)) == (["x"], (1, 1))
    ran = job("mkdir artifacts; cd artifacts; for i in $(seq 1100); do echo $i > $i; done", limits=LIMITS)
    assert (len(files(ran)), counts(ran)) == (1000, (1000, 100))
    ran = job("mkdir artifacts; echo x > artifacts/x", limits=replace(LIMITS, artifacts=0))
    assert (ran.artifacts, counts(ran)) == (b"", (0, 1))


def test_with_few_open_files_and_all_that_a_job_may_have() -> None:
    limits = replace(LIMITS, open_files=16)
    ran = job(f"mkdir -p artifacts/{'d/' * 14}d && touch artifacts/{'d/' * 14}d/x", limits=limits)
    assert counts(ran) == (1, 0)


def test_what_runs_on_changes_nothing() -> None:
    """It is gone before anything is looked at."""
    script = "mkdir artifacts; echo x > artifacts/x\n(while :; do echo more >> artifacts/x; done) &\n"
    ran = job(f"{script}while [ $(stat -c %s artifacts/x) -lt 100 ]; do :; done")
    content = files(ran)["x"]
    assert len(content) >= 100 and set(content.decode().split()) <= {"x", "more"}


def test_of_one_that_is_killed_it_is_kept_too() -> None:
    async def main() -> Ran:
        async with sandbox() as made:
            script = b"mkdir artifacts; echo partly > artifacts/x; echo; sleep 1000"
            process = await (await made.prepare(1)).start(command("/bin/sh", script))
            process.go()
            await read_line(process.stdout)
            process.kill()
            said = await asyncio.gather(read(process.stdout), read(process.stderr), read(process.artifacts))
            return Ran(await process.wait(), *said)

    ran = run(main())
    assert ran.exit.signal == 9
    assert files(ran) == {"x": b"partly\n"}


MUCH = b"mkdir artifacts; head -c 20000000 /dev/zero > artifacts/x; exit 4"


def test_one_that_is_killed_while_it_packs_has_time_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which it needs, as somebody has to take what it packs."""
    monkeypatch.setattr(process, "KILL_PATIENCE", 0.01)

    async def main() -> Ran:
        async with sandbox() as made:
            job = await (await made.prepare(1)).start(command("/bin/sh", MUCH))
            job.go()
            said = await asyncio.gather(read(job.stdout), read(job.stderr))  # the script has ended
            job.kill()
            job.kill()
            await asyncio.to_thread(eventually, lambda: job._packing)
            packed = await read(job.artifacts)
            return Ran(await job.wait(), *said, packed)

    ran = run(main())
    assert (ran.exit.return_code, counts(ran)) == (4, (1, 0))


@pytest.mark.parametrize("kill", [False, True])
def test_nobody_who_takes_them_holds_up_the_end(kill: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the reader has gone, or stops reading and has the job killed."""
    monkeypatch.setattr(process, "KILL_PATIENCE", 0.01)
    monkeypatch.setattr(process, "PACK_PATIENCE", 0.1)

    async def main() -> Exit:
        async with sandbox() as made:
            job = await (await made.prepare(1)).start(command("/bin/sh", MUCH))
            job.go()
            if not kill:
                os.close(job.artifacts)
            await asyncio.gather(read(job.stdout), read(job.stderr))  # the script has ended
            if kill:
                job.kill()
            async with asyncio.timeout(20):
                return await job.wait()

    ended = run(main())
    assert (ended.return_code, ended.left_out) == (4, None if kill else 1)
