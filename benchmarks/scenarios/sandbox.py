"""Sandbox: what one start costs with all walls up, beside a bare shell and a simple bubblewrap."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys

from benchmarks.bench import Bench
from benchmarks.results import Row


async def run(bench: Bench) -> list[Row]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.sandbox", "--jobs", str(bench.scaled(400)), "--rounds", str(bench.rounds),
        "--json", stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError("the sandbox cannot be measured here")
    rounds = json.loads(out)

    def of(way: str, figure: str) -> list[float]:
        return [round_[way][figure] for round_ in rounds]

    return [
        Row(
            "sandbox",
            "one start, four at a time, all walls up: CPU",
            "ms",
            of("sandbox", "CPU ms a job"),
            "simple bubblewrap",
            of("simple bubblewrap", "CPU ms a job"),
            "ratio",
            1,
            at_most=True,
            note=f"bare sh {statistics.median(of('bare sh', 'CPU ms a job')):.2f} ms",
            details={"rounds": rounds},
        ),
        Row(
            "sandbox",
            "one start alone, all walls up: p50",
            "ms",
            of("sandbox", "p50 alone ms"),
            "simple bubblewrap",
            of("simple bubblewrap", "p50 alone ms"),
            note=f"bare sh {statistics.median(of('bare sh', 'p50 alone ms')):.2f} ms",
        ),
    ]
