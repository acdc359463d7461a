"""Neighbours: how long a user waits for a small job while another has 10,000 jobs queued and runs fork bombs."""

from __future__ import annotations

import asyncio
import statistics
import time

from benchmarks.bench import HELLO, Bench, run_hello
from benchmarks.client import Connection
from benchmarks.results import Row

QUEUED = 10_000
BATCH = 1000
BOMB = {"shell": "bash", "code": "bomb() { bomb | bomb & }; bomb; sleep 600"}


async def run(bench: Bench) -> list[Row]:
    count, idle, busy = bench.scaled(300), [], []
    rude, polite = bench.tokens[:2]
    bombs = 0
    for _ in range(bench.rounds):
        idle.append(_p99(await _times(bench, polite, count)))
        await _queue(bench, rude, bench.scaled(QUEUED))
        stop = asyncio.Event()
        bombing = asyncio.create_task(_bomb(bench, rude, stop))
        busy.append(_p99(await _times(bench, polite, count)))
        stop.set()
        bombs += await bombing
        await bench.cancel_all()
    return [
        Row(
            "neighbours",
            f"POST with wait beside a user with {bench.scaled(QUEUED):,} queued jobs and a fork bomb, p99",
            "ms",
            busy,
            "the same on an idle machine",
            idle,
            "ratio",
            3,
            at_most=True,
            note=f"{bombs} fork bombs were ended meanwhile",
        )
    ]


async def _times(bench: Bench, token: str, count: int) -> list[float]:
    """Milliseconds of jobs one after the other, from the POST to the end."""
    connection = await Connection.open(bench.port)
    times = []
    for _ in range(count):
        began = time.perf_counter()
        await run_hello(connection, token)
        times.append((time.perf_counter() - began) * 1e3)
    connection.close()
    return times


def _p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[98]


async def _queue(bench: Bench, token: str, count: int) -> None:
    connection = await Connection.open(bench.port)
    for _ in range(count // BATCH):
        (await connection.request("POST", "/api/jobs/batch", token, {"jobs": [HELLO] * BATCH})).data()
    connection.close()


async def _bomb(bench: Bench, token: str, stop: asyncio.Event) -> int:
    """Keep one fork bomb running, before all else that its user has; returns how many it took."""
    connection, bombs = await Connection.open(bench.port), 0
    while not stop.is_set():
        job = (await connection.request("POST", "/api/jobs?wait=60", token, {**BOMB, "priority": 10})).data()
        bombs += job["status"] == "FAILED"
    connection.close()
    return bombs
