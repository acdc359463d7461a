"""Schedules: 10,000 that fire at the same instant, and how long others wait meanwhile to submit."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from benchmarks.bench import LATER, Bench
from benchmarks.client import Connection
from benchmarks.results import Row

SCHEDULES = 10_000
MAKING = 150.0  # seconds before the instant in which they are made
OTHERS = 5  # users who have no schedules, and submit
PAUSE = 0.02  # seconds between two submissions of one of them
SPAN = 8.0  # seconds that they are looked at


async def run(bench: Bench) -> list[Row]:
    users, others = bench.tokens[OTHERS:], bench.tokens[:OTHERS]
    each = bench.scaled(SCHEDULES) // len(users) + 1
    for token in users:
        connection = await Connection.open(bench.port)
        script = {"name": "tick", "code": "true", "overlap": "parallel"}
        (await connection.request("POST", "/api/scripts", token, script)).data()
        connection.close()
    instant = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=MAKING if not bench.quick else MAKING / 4)
    request = {"script": "tick", "at": instant.isoformat()}

    async def make(connection: Connection, token: str) -> None:
        (await connection.request("POST", "/api/schedules", token, request)).data()

    await bench.in_parallel(each * len(users), len(users), users, make)
    left = (instant - datetime.now(UTC)).total_seconds()
    if left < SPAN + 2:
        raise RuntimeError(f"making the schedules took too long: {left:.0f} s are left")
    await asyncio.sleep(left - SPAN - 1)
    idle = await _submit(bench, others)
    await asyncio.sleep(max(0.0, (instant - datetime.now(UTC)).total_seconds()))
    busy = await _submit(bench, others)
    count = each * len(users)
    late = await _late(bench, users, count, instant)
    await bench.cancel_all()
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
            [busy],
            "the same before",
            [idle],
            "ratio",
            2,
            at_most=True,
        ),
    ]


async def _submit(bench: Bench, tokens: Sequence[str]) -> float:
    """The p99 of submissions for some seconds, in milliseconds."""
    times: list[float] = []
    end = time.perf_counter() + SPAN

    async def work(token: str) -> None:
        connection = await Connection.open(bench.port)
        while time.perf_counter() < end:
            began = time.perf_counter()
            (await connection.request("POST", "/api/jobs", token, LATER)).data()
            times.append((time.perf_counter() - began) * 1e3)
            await asyncio.sleep(PAUSE)
        connection.close()

    await asyncio.gather(*map(work, tokens))
    return statistics.quantiles(times, n=100)[98]


async def _late(bench: Bench, tokens: Sequence[str], count: int, instant: datetime) -> list[float]:
    """How many seconds after the instant each job was stored; there has to be one for each schedule."""
    found: list[float] = []
    fired: Counter[int] = Counter()
    connection = await Connection.open(bench.port)
    for token in tokens:
        jobs = (await connection.request("GET", "/api/jobs?name=tick&limit=1000", token)).data()
        fired.update(job["schedule"] for job in jobs)
        found += [(datetime.fromisoformat(job["created_at"]) - instant).total_seconds() for job in jobs]
    connection.close()
    if len(fired) != count or set(fired.values()) != {1}:
        raise RuntimeError(f"{len(fired)} of {count} schedules have fired, {sum(fired.values())} times")
    return found
