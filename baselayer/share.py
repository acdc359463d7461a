"""A share of the event loop's time, for work that cannot be done elsewhere and that nobody else should notice."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable


class LoopShare:
    """Calls what it is asked to, in turn, and rests in between: all calls together take no more than this share.

    Those who ask are told apart by a key, and these take turns (round robin). Within a key, first come is first served.
    """

    def __init__(self, share: float) -> None:
        """`share` is a part of 1."""
        self._share = share
        self._waiting: OrderedDict[Hashable, deque[Callable[[], None]]] = OrderedDict()
        self._free = 0.0  # when there is time again, by the loop's clock
        self._awake = False

    def ask(self, key: Hashable, work: Callable[[], None]) -> None:
        """Call `work` when it is its turn, never at once. It should take some milliseconds at most; it may ask anew."""
        self._waiting.setdefault(key, deque()).append(work)
        if not self._awake:
            self._awake = True
            self._wait()

    def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        if self._free <= loop.time():
            loop.call_soon(self._work)
        else:
            loop.call_at(self._free, self._work)

    def _work(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            self._next()()
        finally:
            self._free = began + (loop.time() - began) / self._share
            self._awake = bool(self._waiting)
            if self._awake:
                self._wait()

    def _next(self) -> Callable[[], None]:
        key, queue = self._waiting.popitem(last=False)
        work = queue.popleft()
        if queue:
            self._waiting[key] = queue  # behind all others
        return work
