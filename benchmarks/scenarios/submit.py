"""Submit: POST /api/jobs over 32 connections, beside a handler that authenticates and answers next to nothing."""

from __future__ import annotations

from benchmarks.bench import LATER, Bench, Shares
from benchmarks.client import Connection, UnexpectedAnswer
from benchmarks.results import Row

CONNECTIONS = 32


async def run(bench: Bench) -> list[Row]:
    requests, ours, theirs = bench.scaled(10_000), [], []
    for _ in range(bench.rounds):
        theirs.append(await bench.in_parallel(requests, CONNECTIONS, bench.tokens, nothing))
        ids: set[str] = set()

        async def submit(connection: Connection, token: str, ids: set[str] = ids) -> None:
            job = (await connection.request("POST", "/api/jobs", token, LATER)).data()
            if job["status"] != "PENDING":
                raise UnexpectedAnswer(f"a job for tomorrow: {job}")
            ids.add(job["id"])

        with Shares(bench.stack, requests) as shares:
            ours.append(await bench.in_parallel(requests, CONNECTIONS, bench.tokens, submit))
        if len(ids) != requests:
            raise UnexpectedAnswer(f"{requests} submissions made {len(ids)} jobs")
        await bench.cancel_all()
    return [
        Row(
            "submit",
            "POST /api/jobs, 32 connections",
            "requests/s",
            ours,
            "GET /api/shells, the same workers",
            theirs,
            "ratio",
            0.5,
            note=shares.text,
            details={"cpu_ms": shares.milliseconds},
        )
    ]


async def nothing(connection: Connection, token: str) -> None:
    """The request that costs least of those that need a token."""
    (await connection.request("GET", "/api/shells", token)).data()
