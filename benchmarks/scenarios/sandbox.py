"""Sandbox: what one start costs with all walls up, beside a bare shell and a simple bubblewrap."""

from __future__ import annotations

import asyncio
import json
import sys

from benchmarks.bench import Bench
from benchmarks.results import Row


async def run(bench: Bench) -> list[Row]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.sandbox", "--jobs", str(bench.scaled(400)), "--rounds", str(bench.rounds),
        "--json", "/dev/stdout", stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError("the sandbox cannot be measured here")
    figures = json.loads(out[out.index(b"{") :])
    ours, bubblewrap, bare = figures["sandbox"], figures["simple bubblewrap"], figures["bare sh"]
    return [
        Row(
            "sandbox",
            "one start, four at a time, all walls up: CPU",
            "ms",
            [ours["CPU ms a job"]],
            "simple bubblewrap",
            [bubblewrap["CPU ms a job"]],
            "ratio",
            1,
            at_most=True,
            note=f"bare sh {bare['CPU ms a job']:.2f} ms",
            details=figures,
        ),
        Row(
            "sandbox",
            "one start alone, all walls up: p50",
            "ms",
            [ours["p50 alone ms"]],
            "simple bubblewrap",
            [bubblewrap["p50 alone ms"]],
            note=f"bare sh {bare['p50 alone ms']:.2f} ms",
        ),
    ]
