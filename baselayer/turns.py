"""Places that are handed out in turn, so that whoever asks for many keeps nobody else waiting."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Hashable


class Turns:
    """So many places. Nobody has all of them, and those who wait get theirs in turn (round robin over the keys).

    Those who wait are told apart by a key: each may hold two thirds of the places. Within a key, first come is first
    served.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._most = max(1, places - max(1, places // 3))
        self._held: Counter[Hashable] = Counter()
        # While there is a free place, those that wait have all that they may have.
        self._waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()

    def waiting(self, key: Hashable) -> int:
        """How many wait under this key."""
        return len(self._waiting.get(key, ()))

    async def take(self, key: Hashable) -> None:
        """Wait for a place, for as long as it takes: to be cancelled from outside."""
        if self._free and self._held[key] < self._most:
            self._free -= 1
            self._held[key] += 1
            return
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():  # it was given a place at the same moment
                self.give(key)
            else:
                self._leave(key, mine)
            raise

    def give(self, key: Hashable) -> None:
        """Give a place back that was taken with this key: whose turn it is gets it."""
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
        self._free += 1
        for waiting in list(self._waiting):
            if self._held[waiting] < self._most and self._hand_to(waiting):
                return

    def _hand_to(self, key: Hashable) -> bool:
        """Give the free place to the first who waits under this key, unless all have gone away just now."""
        queue = self._waiting.pop(key)
        while queue:
            first = queue.popleft()
            if not first.done():
                self._free -= 1
                self._held[key] += 1
                first.set_result(None)
                if queue:
                    self._waiting[key] = queue  # behind all others
                return True
        return False

    def _leave(self, key: Hashable, mine: asyncio.Future[None]) -> None:
        queue = self._waiting.get(key, deque())
        if mine in queue:
            queue.remove(mine)
            if not queue:
                del self._waiting[key]
