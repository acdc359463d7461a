"""Schedules: 10,000 that fire at the same instant, and how long others wait meanwhile to submit.

What they make also runs. So others are timed apart until the last job is stored, and beside as many plain jobs.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from benchmarks.bench import LATER, Bench
from benchmarks.client import Connection
from benchmarks.results import Row

SCHEDULES = 10_000
MAKING = 150.0  # seconds before the instant in which they are made
OTHERS = 5  # users who have no schedules, and submit
PAUSE = 0.02  # seconds between two submissions of one of them
SPAN = 8.0  # seconds that they are looked at
PATIENCE = 60.0  # seconds after which all jobs have to be there
CODE = "true"


async def run(bench: Bench) -> list[Row]:
    users, others = bench.tokens[OTHERS:], bench.tokens[:OTHERS]
    each = bench.scaled(SCHEDULES) // len(users) + 1
    count = each * len(users)
    instant = await _make(bench, users, count)
    await asyncio.sleep((instant - datetime.now(UTC)).total_seconds() - SPAN - 1)
    idle = await _submit(bench, others)
    await asyncio.sleep(max(0.0, (instant - datetime.now(UTC)).total_seconds()))
    busy = await _submit(bench, others)
    late = await _late(bench, users, count, instant)
    await bench.cancel_all()
    plain = await _submit(bench, others, *(_batch(bench, token, each) for token in users))
    await bench.cancel_all()
    stored = instant.timestamp() + max(late)
    firing, later = [item for item in busy if item.at < stored], [item for item in busy if item.at >= stored]
    return [
        Row(
            "schedules",
            f"{count:,} schedules fire at one instant: seconds until the last job is stored",
            "s",
            [max(late)],
            bound=5,
            at_most=True,
            note=f"each once; half of them within {statistics.median(late):.2f} s",
        ),
        Row(
            "schedules",
            "POST /api/jobs by others meanwhile, p99",
            "ms",
            [_p99(busy)],
            "the same before",
            [_p99(idle)],
            "ratio",
            2,
            at_most=True,
            note=f"until the last job is stored {_p99(firing):.0f} ms, then, as the jobs run, {_p99(later):.0f} ms",
            details={"firing": _p99(firing), "running": _p99(later)},
        ),
        Row(
            "schedules",
            "the same, beside plain jobs",
            "ms",
            [_p99(busy)],
            f"{count:,} of POST /api/jobs/batch",
            [_p99(plain)],
        ),
    ]


async def _make(bench: Bench, tokens: Sequence[str], count: int) -> datetime:
    """Make so many schedules, of these users in turn; returns when they fire."""
    for token in tokens:
        connection = await Connection.open(bench.port)
        script = {"name": "tick", "code": CODE, "overlap": "parallel"}
        (await connection.request("POST", "/api/scripts", token, script)).data()
        connection.close()
    instant = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=MAKING if not bench.quick else MAKING / 4)
    request = {"script": "tick", "at": instant.isoformat()}

    async def make(connection: Connection, token: str) -> None:
        (await connection.request("POST", "/api/schedules", token, request)).data()

    await bench.in_parallel(count, len(tokens), tokens, make)
    left = (instant - datetime.now(UTC)).total_seconds()
    if left < SPAN + 2:
        raise RuntimeError(f"making the schedules took too long: {left:.0f} s are left")
    return instant


@dataclass(frozen=True)
class Answered:
    """A submission: when it was sent, as seconds since the epoch, and after how many milliseconds it was answered."""

    at: float
    milliseconds: float


async def _submit(bench: Bench, tokens: Sequence[str], *meanwhile: Awaitable[None]) -> list[Answered]:
    """Submissions for some seconds, which begin together with what happens meanwhile."""
    found: list[Answered] = []
    end = time.perf_counter() + SPAN

    async def work(token: str) -> None:
        connection = await Connection.open(bench.port)
        while time.perf_counter() < end:
            at, began = time.time(), time.perf_counter()
            (await connection.request("POST", "/api/jobs", token, LATER)).data()
            found.append(Answered(at, (time.perf_counter() - began) * 1e3))
            await asyncio.sleep(PAUSE)
        connection.close()

    await asyncio.gather(*map(work, tokens), *meanwhile)
    return found


def _p99(found: Sequence[Answered]) -> float:
    return statistics.quantiles([item.milliseconds for item in found], n=100)[98]


async def _batch(bench: Bench, token: str, count: int) -> None:
    """Submit as many jobs as schedules of this user fire, in one request."""
    connection = await Connection.open(bench.port)
    body = orjson.dumps({"jobs": [{"code": CODE}] * count})
    (await connection.request("POST", "/api/jobs/batch", token, body)).data()
    connection.close()


async def _late(bench: Bench, tokens: Sequence[str], count: int, instant: datetime) -> list[float]:
    """How many seconds after the instant each job was stored; there has to be one for each schedule."""
    end = time.monotonic() + PATIENCE
    while True:
        jobs = await _fired(bench, tokens)
        fired = Counter(job["schedule"] for job in jobs)
        if len(fired) == count and set(fired.values()) == {1}:
            return [(datetime.fromisoformat(job["created_at"]) - instant).total_seconds() for job in jobs]
        if time.monotonic() > end or len(jobs) > count:
            raise RuntimeError(f"{len(fired)} of {count} schedules have fired, {len(jobs)} times")


async def _fired(bench: Bench, tokens: Sequence[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    connection = await Connection.open(bench.port)
    for token in tokens:
        found += (await connection.request("GET", "/api/jobs?name=tick&limit=1000", token)).data()
    connection.close()
    return found
