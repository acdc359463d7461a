"""The scenarios, in the order in which they are run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from benchmarks.bench import Bench
from benchmarks.results import Row
from benchmarks.scenarios import (
    batch,
    end_to_end,
    flood,
    follow,
    history,
    idle,
    latency,
    neighbours,
    peers,
    sandbox,
    schedules,
    scripts,
    submit,
    uploads,
)

SCENARIOS: dict[str, Callable[[Bench], Awaitable[list[Row]]]] = {
    "idle": idle.run,  # first, while nothing has run yet
    "sandbox": sandbox.run,
    "end_to_end": end_to_end.run,
    "submit": submit.run,
    "batch": batch.run,
    "latency": latency.run,
    "neighbours": neighbours.run,
    "follow": follow.run,
    "flood": flood.run,
    "uploads": uploads.run,
    "scripts": scripts.run,
    "schedules": schedules.run,
    "history": history.run,
    "peers": peers.run,
}
