"""The thread that looks at all jobs: what one job makes it do is no other job's loss."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from shell_service import ends
from shell_service.limits import JobLimits
from shell_service.sandbox import gauge
from shell_service.sandbox.gauge import Gauge, Source, Usage
from tests.factories import JOB_LIMITS

LIMITS = JobLimits(**{**JOB_LIMITS, "memory": 100, "processes": 64, "cpu_seconds": 10})


class Endless:
    """A job of which there is always more to be seen; a look at it takes 20 ms."""

    def __init__(self) -> None:
        self.unseen = 0.0

    def read(self, enough: int, most: int) -> Usage:
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass
        self.unseen += 0.02
        return Usage(1, 0.0, 50, self.unseen)

    def forget(self) -> None:
        self.unseen = 0.0


class Bomb:
    """A job that uses what it is told to, at one look after the other."""

    def __init__(self, *usages: Usage) -> None:
        self._usages: Iterator[Usage] = iter(usages)

    def read(self, enough: int, most: int) -> Usage:
        return next(self._usages)

    def forget(self) -> None:
        pass


async def passed(source: Source, of_all: Gauge) -> tuple[str, Usage]:
    """The limit that a job is told to have passed, and what it used then."""
    told = asyncio.get_running_loop().create_future()
    watch = of_all.watch(source, LIMITS, lambda *what: told.set_result(what))
    try:
        async with asyncio.timeout(20):
            return await told  # type: ignore[no-any-return]
    finally:
        watch.stop()


def test_who_cannot_be_seen_in_time_is_ended_and_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauge, "PATIENCE", 0.5)

    async def main() -> tuple[list[str], float]:
        of_all = Gauge()
        try:
            endless = [asyncio.create_task(passed(Endless(), of_all)) for _ in range(3)]
            await asyncio.sleep(0.2)
            began = time.monotonic()
            assert (await passed(Bomb(Usage(1, 0, 50), Usage(1, 0, 101)), of_all))[0] == "memory"
            waited = time.monotonic() - began
            assert not any(task.done() for task in endless)
            return [name for name, _ in await asyncio.gather(*endless)], waited
        finally:
            of_all.close()

    names, waited = asyncio.run(main())
    assert names == ["looks"] * 3
    assert waited < 1
    assert ends.passed("looks", Usage(), LIMITS) == ends.UNSEEN


def test_another_limit_counts_before_that() -> None:
    much = gauge.PATIENCE + 1
    assert Usage(1, 0, 101, much).passed(LIMITS) == "memory"
    assert Usage(65, 0, 50, much).passed(LIMITS) == "processes"
    assert Usage(1, 10, 50, much).passed(LIMITS) == "cpu_seconds"
    assert Usage(1, 0, 50, much).passed(LIMITS) == "looks"
    assert Usage(1, 0, 50, gauge.PATIENCE / 2).passed(LIMITS) is None
