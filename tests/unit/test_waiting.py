"""Waiting with a limit, and doing what has to be done in spite of errors."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest

from baselayer.errors import Unavailable
from baselayer.waiting import insist, repeat, wait_for


def test_an_event_is_waited_for_but_not_for_ever() -> None:
    async def both() -> tuple[bool, bool]:
        event = asyncio.Event()
        late = await wait_for(event, 0.01)
        asyncio.get_running_loop().call_later(0.01, event.set)
        return late, await wait_for(event, 10)

    assert asyncio.run(both()) == (False, True)


def test_what_fails_is_done_again_after_ever_longer_pauses(caplog: pytest.LogCaptureFixture) -> None:
    times = []

    async def act() -> str:
        times.append(time.monotonic())
        if len(times) < 5:
            raise (Unavailable() if len(times) % 2 else ValueError("broken"))
        return "done"

    assert asyncio.run(insist(act, "the act")) == "done"
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert all(pause >= least for pause, least in zip(pauses, (0.05, 0.1, 0.2, 0.4), strict=True))
    # An outage is for others to log.
    assert [record.getMessage() for record in caplog.records] == ["the act failed, and is tried again"] * 2
    assert "broken" in caplog.text


def test_an_error_ends_no_loop_but_a_cancel_does() -> None:
    async def a_while() -> None:
        done, enough = 0, asyncio.Event()

        async def act() -> None:
            nonlocal done
            done += 1
            if done == 5:
                enough.set()
            if done % 2:
                raise ValueError

        task = asyncio.create_task(repeat(act, "the act"))
        assert await wait_for(enough, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(a_while())
