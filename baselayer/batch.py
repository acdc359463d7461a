"""Group commit: what arrives while one batch is under way makes the next."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from baselayer.errors import Unavailable

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class Batcher(Generic[Item, Result]):
    """Hands items to `flush` in batches, one batch at a time, and each caller the result of his own item.

    An item may also result in an exception of its own. When a whole batch fails for another reason than that the
    database is away, its items are tried again one by one, so that one bad item cannot fail its neighbours.
    """

    def __init__(
        self,
        flush: Callable[[list[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        max_items: int = 200,
        max_queue: int = 10_000,
        weigh: Callable[[Item], int] = lambda item: 0,
        max_weight: int = 0,
        pause: float = 0.0,
    ) -> None:
        """A batch takes up to `max_items`, and none after those in it `weigh` more than `max_weight` together.

        `pause` is for how many seconds after a batch of several the next is gathered: where many come, there are fewer
        batches, and larger ones; who comes alone does not wait.
        """
        self._flush = flush
        self._max_items = max_items
        self._max_queue = max_queue
        self._weigh = weigh
        self._max_weight = max_weight
        self._pause = pause
        self._queue: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def put(self, item: Item) -> Result:
        """The result of `item`. Raises what it resulted in, or `Unavailable` when too many wait already."""
        if len(self._queue) >= self._max_queue:
            raise Unavailable("Too many requests are waiting; try again in a moment.")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.append((item, future))
        if self._task is None or self._task.done():
            # In a context of its own: it works for all, not for whoever came first.
            self._task = asyncio.create_task(self._work(), context=contextvars.Context())
        return await future

    async def _work(self) -> None:
        while self._queue:
            batch = self._next()
            for (_, future), result in zip(batch, await self._results([item for item, _ in batch]), strict=True):
                if future.done():  # whoever asked has gone
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)
            if self._pause and len(batch) > 1:
                await asyncio.sleep(self._pause)

    def _next(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        weight = 0
        while self._queue and len(batch) < self._max_items and weight <= self._max_weight:
            batch.append(self._queue.popleft())
            weight += self._weigh(batch[-1][0])
        return batch

    async def _results(self, items: list[Item]) -> Sequence[Result | Exception]:
        try:
            return await self._flush(items)
        except Unavailable as error:
            return [error] * len(items)
        except Exception as error:
            if len(items) == 1:
                return [error]
            logger.warning("a batch of %d failed, its items are tried one by one: %r", len(items), error)
            return [(await self._results([item]))[0] for item in items]
