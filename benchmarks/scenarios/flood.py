"""Flood: a job that prints 1 GiB, all of it kept, and what the runner's memory does meanwhile."""

from __future__ import annotations

import asyncio
import time

from benchmarks.bench import Bench, memory_of
from benchmarks.client import Connection, UnexpectedAnswer
from benchmarks.results import Row

SIZE = 2**30
_LOOK_SECONDS = 0.01


async def run(bench: Bench) -> list[Row]:
    size = bench.scaled(SIZE)
    code = {"code": f"head -c {size} /dev/zero", "limits": {"output": size}}
    runner = bench.stack.pids()["runner_00"]
    rates, growths = [], []
    connection = await Connection.open(bench.port)
    for _ in range(bench.rounds):
        before, peak = memory_of(runner), 0
        began = time.perf_counter()
        waiting = asyncio.create_task(connection.request("POST", "/api/jobs?wait=120", bench.tokens[0], code))
        while not waiting.done():
            peak = max(peak, memory_of(runner))
            await asyncio.wait({waiting}, timeout=_LOOK_SECONDS)
        seconds = time.perf_counter() - began
        job = waiting.result().data()
        if (job["status"], job["stdout_bytes"], job["output_truncated"]) != ("COMPLETED", size, False):
            raise UnexpectedAnswer(f"the flood ended otherwise: {job['status']}, {job['stdout_bytes']} bytes")
        rates.append(size / 1e6 / seconds)
        growths.append((peak - before) / 2**20)
    connection.close()
    what = f"{size / 2**20:,.0f} MiB of output, all kept, from the POST to the end"
    return [
        Row("flood", what, "MB/s", rates, bound=300),
        Row("flood", "growth of the runner's memory meanwhile", "MiB", growths, bound=16, at_most=True),
    ]
