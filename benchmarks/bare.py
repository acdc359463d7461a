"""The yardstick: a simple bubblewrap line started by a bare asyncio loop. ``python -m benchmarks.bare JOBS AT_ONCE``"""

from __future__ import annotations

import asyncio
import ctypes
import json
import statistics
import sys
import time

from benchmarks.sandbox import bubblewrap, cpu, repeat

PR_SET_CHILD_SUBREAPER = 36


async def measure(jobs: int, at_once: int) -> dict[str, float]:
    """Starts a second, and the median milliseconds of one; what each printed is checked."""
    await repeat(bubblewrap, 2 * at_once, at_once)
    began = time.perf_counter()
    times = await repeat(bubblewrap, jobs, at_once)
    seconds = time.perf_counter() - began
    return {"per_second": jobs / seconds, "p50_ms": statistics.median(times) * 1e3}


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # bubblewrap leaves its init behind unreaped
    print(json.dumps(asyncio.run(measure(int(sys.argv[1]), int(sys.argv[2])))))
    cpu()  # reaps


if __name__ == "__main__":
    main()
