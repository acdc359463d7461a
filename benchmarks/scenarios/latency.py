"""Latency: one job at a time on an idle machine, POST with wait, beside one start of a bare bubblewrap."""

from __future__ import annotations

import statistics
import time

from benchmarks.bench import Bench, bare_sandbox, run_hello
from benchmarks.client import Connection
from benchmarks.results import Row


async def run(bench: Bench) -> list[Row]:
    count, ours, theirs, slow = bench.scaled(100), [], [], []
    connection = await Connection.open(bench.port)
    for _ in range(bench.rounds):
        theirs.append((await bare_sandbox(count, 1))["p50_ms"])
        times = []
        for _ in range(count):
            began = time.perf_counter()
            await run_hello(connection, bench.tokens[0])
            times.append((time.perf_counter() - began) * 1e3)
        ours.append(statistics.median(times))
        slow.append(statistics.quantiles(times, n=20)[-1])
    connection.close()
    return [
        Row(
            "latency",
            "POST with wait, one at a time, p50",
            "ms",
            ours,
            "one simple bubblewrap, p50",
            theirs,
            "ratio",
            3,
            at_most=True,
            note=f"p95 {statistics.median(slow):.1f} ms",
            details={"p95_ms": slow},
        )
    ]
