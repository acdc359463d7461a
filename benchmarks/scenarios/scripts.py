"""Scripts: run by name beside plain submission, and a script with 10,000 versions."""

from __future__ import annotations

import asyncio
import statistics
import time

from benchmarks.bench import HELLO, Bench, Shares
from benchmarks.client import Connection, UnexpectedAnswer
from benchmarks.results import Row

VERSIONS = 10_000
READS = 300


async def run(bench: Bench) -> list[Row]:
    return [await _by_name(bench), *await _versions(bench)]


async def _by_name(bench: Bench) -> Row:
    for token in bench.tokens:
        connection = await Connection.open(bench.port)
        script = {"name": "hello", "overlap": "parallel", **HELLO}
        (await connection.request("POST", "/api/scripts", token, script)).data()
        connection.close()
    jobs, ours, theirs, note = bench.scaled(2500), [], [], ""
    for _ in range(bench.rounds):
        theirs.append(await bench.end_to_end(jobs))
        with Shares(bench.stack, jobs) as shares:
            ours.append(await bench.in_parallel(jobs, len(bench.tokens), bench.tokens, _run_hello))
        note = shares.text
    what = f"{jobs:,} runs of a script by name, by {len(bench.tokens)} users, end to end"
    return Row("scripts", what, "jobs/s", ours, "the same submitted as code", theirs, "ratio", 0.9, note=note)


async def _run_hello(connection: Connection, token: str) -> None:
    job = (await connection.request("POST", "/api/scripts/hello/run?wait=120", token, {})).data()
    if (job["status"], job["stdout"], job["script_version"]) != ("COMPLETED", "hello\n", 1):
        raise UnexpectedAnswer(f"a job ended otherwise: {job}")


async def _versions(bench: Bench) -> list[Row]:
    token, connection = bench.tokens[0], await Connection.open(bench.port)
    count = bench.scaled(VERSIONS)
    (await connection.request("POST", "/api/scripts", token, {"name": "long", "code": "echo 1"})).data()
    left = iter(range(2, count + 1))

    async def change() -> None:
        other = await Connection.open(bench.port)
        for number in left:
            (await other.request("PUT", "/api/scripts/long", token, {"code": f"echo {number}"})).data()
        other.close()

    await asyncio.gather(*(change() for _ in range(4)))
    connection.close()
    connection = await Connection.open(bench.port)  # that one was idle for long
    rows = []
    for what, path in (
        ("list the versions of", "/api/scripts/long/versions"),
        ("read", "/api/scripts/long"),
        ("read an old version of", f"/api/scripts/long/versions/{count // 2}"),
    ):
        times = []
        for _ in range(READS):
            began = time.perf_counter()
            (await connection.request("GET", path, token)).data()
            times.append((time.perf_counter() - began) * 1e3)
        p99 = statistics.quantiles(times, n=100)[98]
        what = f"{what} a script with {count:,} versions, p99"
        rows.append(
            Row("scripts", what, "ms", [p99], bound=20, at_most=True, note=f"p50 {statistics.median(times):.1f}")
        )
    connection.close()
    return rows
