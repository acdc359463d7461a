"""Batch: 1,000 jobs a request."""

from __future__ import annotations

import orjson

from benchmarks.bench import LATER, Bench, Shares
from benchmarks.client import Connection, UnexpectedAnswer
from benchmarks.results import Row

SIZE = 1000
CONNECTIONS = 4


async def run(bench: Bench) -> list[Row]:
    batches, ours = bench.scaled(20), []
    body = orjson.dumps({"jobs": [LATER] * SIZE})
    for _ in range(bench.rounds):
        ids: set[str] = set()

        async def submit(connection: Connection, token: str, ids: set[str] = ids) -> None:
            ids.update(job["id"] for job in (await connection.request("POST", "/api/jobs/batch", token, body)).data())

        with Shares(bench.stack, batches * SIZE) as shares:
            ours.append(SIZE * await bench.in_parallel(batches, CONNECTIONS, bench.tokens, submit))
        if len(ids) != batches * SIZE:
            raise UnexpectedAnswer(f"{batches * SIZE} submissions made {len(ids)} jobs")
        await bench.cancel_all()
    return [
        Row(
            "batch",
            "batches of 1,000, 4 connections",
            "jobs/s",
            ours,
            bound=5000,
            note=shares.text,
            details={"cpu_ms": shares.milliseconds},
        )
    ]
