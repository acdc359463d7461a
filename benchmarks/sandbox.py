"""What one start costs: a bare shell, a simple bubblewrap line, and our sandbox, in turns on the same machine.

    python -m benchmarks.sandbox [--jobs 400] [--rounds 5] [--json FILE]

Each runs `echo hello` and reads what it printed, four at a time. CPU is that of this process and all its descendants,
user and system, divided by the jobs; for ours it includes the start of four launchers. Alone: one at a time, no others.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import resource
import statistics
import time
from collections.abc import Awaitable, Callable

from shell_service import settings
from shell_service.limits import JobLimits
from shell_service.sandbox import Command, Sandbox
from tests.sandbox.support import finish
from tests.waiting import eventually

AT_ONCE = 4
ALONE = 50
SCRIPT = "echo hello"
BUBBLEWRAP = [
    "bwrap",
    "--unshare-all",
    "--die-with-parent",
    "--new-session",
    "--ro-bind",
    "/usr",
    "/usr",
    "--symlink",
    "usr/bin",
    "/bin",
    "--symlink",
    "usr/lib",
    "/lib",
    "--symlink",
    "usr/lib64",
    "/lib64",
    "--proc",
    "/proc",
    "--dev",
    "/dev",
    "--tmpfs",
    "/tmp",
    "--clearenv",
    "/bin/sh",
    "-c",
]

Run = Callable[[int], Awaitable[bytes]]


async def spawn(*argv: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    return (await process.communicate())[0]


async def bare(_: int) -> bytes:
    return await spawn("/bin/sh", "-c", SCRIPT)


async def bubblewrap(_: int) -> bytes:
    return await spawn(*BUBBLEWRAP, SCRIPT)


def ours(sandbox: Sandbox, users: int, limits: JobLimits) -> Run:
    command = Command("/bin/sh", SCRIPT.encode(), limits=limits)

    async def run(worker: int) -> bytes:
        launcher = await sandbox.prepare(worker % users + 1)
        process = await launcher.start(command)
        process.go()
        ran = await finish(process)
        return ran.stdout + ran.stderr

    return run


def cpu() -> tuple[float, float]:
    """Seconds so far: of this process, and of its descendants that have ended."""
    reap()
    mine, theirs = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + mine.ru_stime, theirs.ru_utime + theirs.ru_stime


def reap() -> bool:
    """Let descendants that have ended count (bubblewrap leaves its init to us, the subreaper); whether any is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


async def repeat(run: Run, jobs: int, workers: int) -> list[float]:
    """Seconds of each of `jobs` runs, by `workers` at once."""
    left, times = iter(range(jobs)), []

    async def work(worker: int) -> None:
        for _ in left:
            began = time.perf_counter()
            output = await run(worker)
            times.append(time.perf_counter() - began)
            if output != b"hello\n":
                raise SystemExit(f"unexpected output {output!r}")

    await asyncio.gather(*map(work, range(workers)))
    return times


async def measure(way: str, jobs: int) -> dict[str, float]:
    configured = settings.load()
    sandbox, limits = Sandbox(configured.sandbox), configured.limits.defaults
    runs = {
        "bare sh": bare,
        "simple bubblewrap": bubblewrap,
        "sandbox": ours(sandbox, 4, limits),
        "sandbox, one user": ours(sandbox, 1, limits),
    }
    run = runs[way]
    before, began = cpu(), time.perf_counter()
    await repeat(run, jobs, AT_ONCE)
    seconds = time.perf_counter() - began
    own = cpu()[0] - before[0]
    await sandbox.close()
    await asyncio.to_thread(eventually, lambda: not reap(), 10)  # now its launchers count
    after = cpu()
    alone = await repeat(run, ALONE, 1)
    await sandbox.close()
    await asyncio.to_thread(eventually, lambda: not reap(), 10)
    return {
        "jobs/s": jobs / seconds,
        "CPU ms a job": (own + after[1] - before[1]) / jobs * 1e3,
        "of it here": own / jobs * 1e3,
        "p50 alone ms": statistics.median(alone) * 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=400, help="a round and way")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--json", action="store_true", help="print the figures of all rounds as JSON instead of a table"
    )
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    ways = ("bare sh", "simple bubblewrap", "sandbox", "sandbox, one user")
    rounds = [{way: asyncio.run(measure(way, options.jobs)) for way in ways} for _ in range(options.rounds)]
    if options.json:
        print(json.dumps(rounds))
        return
    medians = {
        way: {figure: statistics.median(r[way][figure] for r in rounds) for figure in rounds[0][way]} for way in ways
    }
    figures = list(rounds[0][ways[0]])
    print(f"{'':20}" + "".join(f"{figure:>15}" for figure in figures))
    for way in ways:
        print(f"{way:20}" + "".join(f"{medians[way][figure]:15.2f}" for figure in figures))
    ratio = statistics.median(r["sandbox"]["jobs/s"] / r["simple bubblewrap"]["jobs/s"] for r in rounds)
    print(f"sandbox / simple bubblewrap: {ratio:.2f} x its jobs/s")


if __name__ == "__main__":
    main()
