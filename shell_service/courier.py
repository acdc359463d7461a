"""The courier: takes what has to be delivered to webhooks, sends it, and notes what came of it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

from baselayer.database import Database
from baselayer.failpoint import FailPoints
from baselayer.guard import Guard, Refused
from shell_service import webhooks
from shell_service.secrets import Keyring
from shell_service.settings import Webhooks
from shell_service.webhooks import Delivery, Outcome

if TYPE_CHECKING:
    from baselayer.outbound import Poster


class Courier:
    """Delivers to addresses that `options` allow."""

    def __init__(self, database: Database, keyring: Keyring, options: Webhooks, failpoints: FailPoints) -> None:
        self._database = database
        self._keyring = keyring
        self._options = options
        self._failpoints = failpoints

    @cached_property
    def _poster(self) -> Poster:
        # Imported when there is something to send: mostly there never is, and it is some megabytes.
        from baselayer.outbound import Poster

        return Poster(Guard(self._options.networks), self._options.timeout, webhooks.AT_ONCE)

    async def round(self) -> int:
        """Send what is due, some at once; returns how many that were."""
        if not await self._database.fetch(webhooks.any_due()):
            return 0
        deliveries = await self._database.run(webhooks.take, self._keyring)
        self._failpoints.reach("courier.taken")
        outcomes = await asyncio.gather(*map(self._deliver, deliveries))
        self._failpoints.reach("courier.sent")
        await self._database.run(webhooks.settle, outcomes)
        return len(deliveries)

    async def _deliver(self, delivery: Delivery) -> Outcome:
        answer: int | None = None
        refused = False
        try:
            answer = await self._poster.post(
                delivery.url, lambda: delivery.headers(datetime.now(UTC)), delivery.content
            )
            problem = None if 200 <= answer < 300 else f"The answer was {answer}."
        except TimeoutError:
            problem = f"No answer within {self._options.timeout:g} s."
        except Refused as error:
            problem, refused = f"Refused: {error}.", True
        except OSError as error:
            problem = f"It could not be sent: {_plain(error)}."
        return Outcome(delivery.id, delivery.attempts, answer, problem, unwanted=refused or answer == 410)


def _plain(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")[:200] if str(error) else type(error).__name__
