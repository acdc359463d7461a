"""Work on the event loop that has a share of its time: together, in turn, and never more."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from functools import partial

from baselayer.share import LoopShare


def work(seconds: float) -> None:
    """Take so much time of the loop."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def test_all_together_have_one_share() -> None:
    async def main() -> tuple[Counter[int], float]:
        share, calls = LoopShare(0.2), Counter[int]()

        def call(number: int) -> None:
            work(0.002)
            calls[number] += 1
            share.ask(number, partial(call, number))

        began = time.perf_counter()
        for number in range(10):
            share.ask(number, partial(call, number))
        assert not calls  # never at once
        await asyncio.sleep(0.5)
        return calls, time.perf_counter() - began

    calls, seconds = asyncio.run(main())
    assert calls.total() * 0.002 <= seconds * 0.2 + 0.002
    assert calls.total() > 10
    assert max(calls.values()) - min(calls.values()) <= 1


def test_who_asks_for_much_keeps_nobody_else_waiting() -> None:
    async def main() -> list[str]:
        share, order, done = LoopShare(0.9), [], asyncio.Event()
        for name in ["a1", "a2", "a3", "b1", "c1", "b2"]:
            share.ask(name[0], partial(order.append, name))
        share.ask("a", done.set)
        await asyncio.wait_for(done.wait(), 5)
        return order

    assert asyncio.run(main()) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_what_fails_does_not_end_it() -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
        share, errors, done = LoopShare(0.5), [], asyncio.Event()
        share.ask(1, partial(int, "no number"))
        share.ask(1, done.set)
        await asyncio.wait_for(done.wait(), 5)
        assert [type(error) for error in errors] == [ValueError]
        done.clear()
        share.ask(1, done.set)  # nobody waits any more: it begins anew
        await asyncio.wait_for(done.wait(), 5)

    asyncio.run(main())
