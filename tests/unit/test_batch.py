"""Group commit: each gets the result of his own item, whatever becomes of the others."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from typing import Any

import pytest

from baselayer.batch import Batcher
from baselayer.errors import Unavailable


class Flush:
    """Doubles numbers, remembers the batches, and waits for `gate` where there is one."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate: asyncio.Event | None = None
        self.running = self.most_running = 0

    async def __call__(self, items: list[int]) -> Sequence[int | Exception]:
        self.batches.append(items)
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            await (self.gate.wait() if self.gate else asyncio.sleep(0))
        finally:
            self.running -= 1
        if 13 in items:
            raise ValueError("13")
        if 503 in items:
            raise Unavailable
        return [KeyError(item) if item < 0 else item * 2 for item in items]


def outcomes(flush: Flush, items: list[int], **options: Any) -> list[int | BaseException]:
    async def main() -> list[int | BaseException]:
        batcher: Batcher[int, int] = Batcher(flush, **options)
        return await asyncio.gather(*map(batcher.put, items), return_exceptions=True)

    return asyncio.run(main())


def test_what_comes_together_is_one_batch_in_order() -> None:
    flush = Flush()
    assert outcomes(flush, list(range(20, 120))) == [2 * item for item in range(20, 120)]
    assert flush.batches == [list(range(20, 120))]


def test_batches_are_bounded_and_one_at_a_time() -> None:
    flush = Flush()
    assert outcomes(flush, list(range(20, 45)), max_items=10) == [2 * item for item in range(20, 45)]
    assert list(map(len, flush.batches)) == [10, 10, 5]
    assert flush.most_running == 1


def test_a_batch_that_is_heavy_enough_takes_no_more() -> None:
    flush = Flush()
    outcomes(flush, [1, 2, 30, 40, 5, 6], weigh=lambda item: item, max_weight=10)
    assert flush.batches == [[1, 2, 30], [40], [5, 6]]


def test_with_a_pause_what_comes_after_a_batch_is_gathered() -> None:
    async def main() -> None:
        flush = Flush()
        batcher: Batcher[int, int] = Batcher(flush, pause=0.5)
        for item in (1, 2):
            assert await batcher.put(item) == 2 * item  # who comes alone waits for nobody
        assert await asyncio.gather(batcher.put(3), batcher.put(4)) == [6, 8]
        others = [asyncio.create_task(batcher.put(5))]
        for _ in range(10):  # turns of the loop: a batch takes three of them
            await asyncio.sleep(0)
        assert flush.batches == [[1], [2], [3, 4]]
        assert await asyncio.gather(*others, batcher.put(6)) == [10, 12]
        assert flush.batches == [[1], [2], [3, 4], [5, 6]]

    asyncio.run(main())


def test_an_item_can_fail_by_itself() -> None:
    flush = Flush()
    first, second, third = outcomes(flush, [1, -2, 3])
    assert (first, third) == (2, 6)
    assert isinstance(second, KeyError)
    assert len(flush.batches) == 1


def test_an_item_that_makes_its_batch_fail_fails_alone() -> None:
    flush = Flush()
    first, bad, third = outcomes(flush, [1, 13, 3])
    assert (first, third) == (2, 6)
    assert isinstance(bad, ValueError)
    assert flush.batches == [[1, 13, 3], [1], [13], [3]]


def test_when_the_database_is_away_nothing_is_tried_again() -> None:
    flush = Flush()
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes(flush, [1, 503, 3]))
    assert flush.batches == [[1, 503, 3]]


def test_the_queue_is_bounded() -> None:
    flush = Flush()
    found = outcomes(flush, list(range(20, 30)), max_queue=4)
    assert found[:4] == [40, 42, 44, 46]
    assert all(isinstance(outcome, Unavailable) for outcome in found[4:])


def test_one_who_goes_away_does_not_disturb_the_others() -> None:
    async def main() -> None:
        flush = Flush()
        flush.gate = asyncio.Event()
        batcher: Batcher[int, int] = Batcher(flush)
        under_way = [asyncio.create_task(batcher.put(item)) for item in (1, 2, 3)]
        for _ in range(10):  # turns of the loop
            await asyncio.sleep(0)
        assert flush.running == 1
        waiting = [asyncio.create_task(batcher.put(item)) for item in (4, 5, 6)]
        await asyncio.sleep(0)
        for task in (under_way[1], waiting[1]):
            task.cancel()
        await asyncio.sleep(0)
        flush.gate.set()
        found = await asyncio.gather(*under_way, *waiting, return_exceptions=True)
        assert [found[i] for i in (0, 2, 3, 5)] == [2, 6, 8, 12]
        assert isinstance(found[1], asyncio.CancelledError)
        assert isinstance(found[4], asyncio.CancelledError)

    asyncio.run(main())


def test_it_works_again_after_a_pause() -> None:
    async def main() -> None:
        batcher: Batcher[int, int] = Batcher(Flush())
        for item in (1, 2):
            assert await batcher.put(item) == 2 * item
            await asyncio.sleep(0)
        with pytest.raises(ValueError, match="13"):
            await batcher.put(13)
        assert await batcher.put(3) == 6

    asyncio.run(main())


def test_a_batch_is_nobody_s_in_particular() -> None:
    """What the first who came has in his context is not what the batch runs in."""
    whose: contextvars.ContextVar[str] = contextvars.ContextVar("whose", default="nobody")
    seen = []

    async def flush(items: list[int]) -> list[int]:
        seen.append(whose.get())
        return items

    async def main() -> None:
        batcher: Batcher[int, int] = Batcher(flush)
        whose.set("first")
        await batcher.put(1)

    asyncio.run(main())
    assert seen == ["nobody"]
