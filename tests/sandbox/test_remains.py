"""What is left of a job goes soon, and is not what its end, or anybody else's, waits for."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from shell_service.sandbox import remains
from shell_service.sandbox.remains import Remains
from tests.sandbox.support import command, execute, finish, run, sandbox
from tests.waiting import eventually


def mounts_held() -> list[str]:
    """Mount namespaces of which this process has descriptors."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:  # that of the listing itself, or closed meanwhile
            pass
    return [link for link in links if link.startswith("mnt:")]


def test_a_job_is_over_while_its_mounts_still_have_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """So no init takes them away, with as little of the processor as its user has left."""
    go_on, close = threading.Event(), remains._close

    def close_later(*what: list[int]) -> None:
        assert go_on.wait(60)
        close(*what)

    monkeypatch.setattr(remains, "_close", close_later)

    async def main() -> None:
        async with sandbox() as made:
            try:
                assert (await execute(await made.prepare(1), "echo fine > /tmp/x; cat /tmp/x")).stdout == b"fine\n"
                held = mounts_held()
                assert len(held) == 1
                assert held[0] != os.readlink("/proc/self/ns/mnt")
            finally:
                go_on.set()

    run(main())
    eventually(lambda: not mounts_held())


def test_of_only_so_many_jobs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(remains, "_close", lambda descriptors: go_on.wait(60))

    async def main() -> None:
        left = Remains()
        try:
            for _ in range(remains._MOST):
                assert left.remove([], [0]) is None
            late = left.remove([], [0])
            assert late and not late.done()
        finally:
            go_on.set()
        await late
        assert left.remove([], []) is None
        assert left.remove([], [0]) is None

    run(main())


def test_what_takes_long_to_free_is_waited_for() -> None:
    async def main() -> None:
        left = Remains()
        for size, waited in ((1, False), (remains._LITTLE + 1, True)):
            async with sandbox() as made:
                fill = command("/bin/sh", b"head -c %d /dev/zero > /job/x" % size)
                process = await (await made.prepare(1)).start(fill)
                process.go()
                file_systems = [os.dup(fd) for fd in process.file_systems]
                assert (await finish(process)).stdout == b""
            going = left.remove(file_systems, [])
            assert (going is not None) == waited
            if going:
                await asyncio.wait_for(going, 10)

    run(main())
