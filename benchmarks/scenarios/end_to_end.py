"""End to end: jobs of 100 users from the POST to COMPLETED, beside a bare bubblewrap."""

from __future__ import annotations

from benchmarks.bench import Bench, Shares, bare_sandbox
from benchmarks.results import Row


async def run(bench: Bench) -> list[Row]:
    jobs, ours, theirs = bench.scaled(5000), [], []
    for _ in range(bench.rounds):
        theirs.append((await bare_sandbox(bench.scaled(1000), 4))["per_second"])
        with Shares(bench.stack, jobs) as shares:
            ours.append(await bench.end_to_end(jobs))
    return [
        Row(
            "end to end",
            f"{jobs:,} × echo hello by 100 users, output checked",
            "jobs/s",
            ours,
            "simple bubblewrap, 4 at a time",
            theirs,
            "ratio",
            0.6,
            note=shares.text,
            details={"cpu_ms": shares.milliseconds},
        )
    ]
