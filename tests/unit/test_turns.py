"""Places in turn: nobody has all, nobody waits for one who asks for many, and no place is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselayer.turns import Turns


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 5))


def test_nobody_has_all_and_those_who_wait_take_turns() -> None:
    async def main() -> None:
        turns, order = Turns(3), []

        async def use(key: str, number: int) -> None:
            await turns.take(key)
            order.append(f"{key}{number}")

        many = [asyncio.create_task(use("a", number)) for number in range(6)]
        await settle()
        assert order == ["a0", "a1"]  # of three
        few = [asyncio.create_task(use("b", number)) for number in range(2)]
        await settle()
        assert order[2:] == ["b0"]
        for number in range(6):
            turns.give(order[number][0])
            await settle()
        assert order[3:] == ["a2", "b1", "a3", "a4", "a5"]
        assert (turns.waiting("a"), turns.waiting("b")) == (0, 0)
        await asyncio.gather(*many, *few)

    run(main())


@pytest.mark.parametrize("places", [1, 2, 3, 6])
def test_one_alone_can_always_go_on(places: int) -> None:
    async def main() -> None:
        turns = Turns(places)
        for _ in range(3 * places):
            await turns.take("a")
            turns.give("a")

    run(main())


@given(st.integers(1, 5), st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["take", "give", "go"]))))
def test_no_place_is_lost_and_none_is_doubled(places: int, acts: list[tuple[str, str]]) -> None:
    """Whoever comes, goes away while waiting, even at the moment of his turn, or gives back."""

    async def main() -> None:
        turns = Turns(places)
        held: list[str] = []
        tasks: list[tuple[str, asyncio.Task[None]]] = []

        async def use(key: str) -> None:
            await turns.take(key)
            held.append(key)

        for key, act in acts:
            if act == "take":
                tasks.append((key, asyncio.create_task(use(key))))
                await settle()
            elif act == "give" and key in held:
                held.remove(key)
                turns.give(key)  # those who go away next may have been handed it just now
            elif act == "go":
                for owner, task in tasks:
                    if owner == key and not task.done():
                        task.cancel()
                        break
            assert len(held) <= places
        await settle()
        while held:
            turns.give(held.pop())
            await settle()
            assert len(held) <= places
        await asyncio.gather(*(task for _, task in tasks), return_exceptions=True)
        assert all(task.done() for _, task in tasks)
        assert turns._free == places
        assert not turns._held and not turns._waiting

    run(main())
