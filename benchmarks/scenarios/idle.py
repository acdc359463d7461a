"""Idle: processor and memory of the whole stack while it has nothing to do."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from benchmarks import cpu
from benchmarks.bench import Bench
from benchmarks.results import Row

SETTLE_SECONDS = 70  # launchers that were used to warm up end after half a minute without work
MEASURE_SECONDS = 30


async def run(bench: Bench) -> list[Row]:
    await asyncio.sleep(5 if bench.quick else SETTLE_SECONDS)
    pids = cpu.tree(bench.stack.pid)
    before = sum(sum(cpu.seconds(pid)) for pid in pids)
    seconds = 10 if bench.quick else MEASURE_SECONDS
    await asyncio.sleep(seconds)
    after = sum(sum(cpu.seconds(pid)) for pid in pids)
    sizes = {pid: size for pid in cpu.tree(bench.stack.pid) if (size := proportional_bytes(pid))}
    total = sum(sizes.values()) / 2**20
    by_name: dict[str, float] = {}
    for pid, size in sizes.items():
        name = _name(pid)
        by_name[name] = by_name.get(name, 0.0) + size / 2**20
    largest = sorted(by_name.items(), key=lambda item: -item[1])
    note = ", ".join(f"{name} {size:.0f}" for name, size in largest[:7])
    return [
        Row("idle", "processor, whole stack", "% of a core", [(after - before) / seconds * 100], bound=1, at_most=True),
        Row(
            "idle",
            f"memory (PSS), {len(sizes)} processes",
            "MiB",
            [total],
            bound=450,
            at_most=True,
            note=note,
            details={"mib": by_name},
        ),
    ]


def proportional_bytes(pid: int) -> int:
    """Memory of a process, what it shares divided by those who share it; 0 when it has gone."""
    try:
        found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def _name(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        found = re.search(r"services\.(\w+)|(supervisord|nginx|postgres|launcher)", words)
        return (found[1] or found[2]) if found else Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "gone"
