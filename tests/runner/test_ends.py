"""What is said of an end: memory and time are named where they ended a job, and nowhere else."""

from __future__ import annotations

import asyncio
import signal
import time
from types import SimpleNamespace
from typing import Any

import pytest

from shell_service import ends
from shell_service.attempt import Attempt
from shell_service.limits import JobLimits, said
from shell_service.sandbox import Exit
from shell_service.sandbox.gauge import Usage
from tests.factories import JOB_LIMITS
from tests.waiting import eventually

GiB = 1 << 30
LIMITS = JobLimits(**{**JOB_LIMITS, "memory": GiB, "processes": 64, "cpu_seconds": 10, "file_size": GiB})
KILL, XCPU, XFSZ = signal.SIGKILL, signal.SIGXCPU, signal.SIGXFSZ


def end(code: int | None = None, number: int | None = None, **known: Any) -> tuple[str, str]:
    """Of a job that ended so, by itself."""
    ended = Exit(code, number, 0.0, 0, 0, full=known.pop("full", {}), lost=known.pop("lost", False))
    facts = {"used": Usage(), "over_memory": False, "machine_out_of_memory": False, **known}
    return ends.by_itself(ends.Known(ended, LIMITS, **facts))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (end(0), ("COMPLETED", "exit code 0")),
        (end(137), ("FAILED", "exit code 137")),
        (end(None, KILL), ("FAILED", "killed by SIGKILL from inside")),
        (end(None, KILL, lost=True), ("NODE_FAIL", "the process that held its sandbox died")),
        (end(None, KILL, machine_out_of_memory=True), ("OUT_OF_MEMORY", "the machine ran out of memory")),
        (end(1, machine_out_of_memory=True), ("FAILED", "exit code 1")),
        (end(0, over_memory=True), ("COMPLETED", "exit code 0")),
        (
            end(None, KILL, over_memory=True, used=Usage(memory=GiB)),
            ("OUT_OF_MEMORY", "stopped: more than 1 GiB of memory used, 1 GiB allowed"),
        ),
        (
            end(1, used=Usage(memory=GiB * 6 // 5)),
            ("FAILED", "exit code 1; 1.2 GiB of memory used, 1 GiB allowed"),
        ),
        (
            end(None, signal.SIGSEGV, used=Usage(memory=GiB * 6 // 5)),
            ("OUT_OF_MEMORY", "killed by SIGSEGV from inside; 1.2 GiB of memory used, 1 GiB allowed"),
        ),
        (end(None, 40), ("FAILED", "killed by SIGRTMIN+6 from inside")),
        (end(None, 32), ("FAILED", "killed by SIGRTMIN-2 from inside")),
        (end(None, 64), ("FAILED", "killed by SIGRTMAX from inside")),
        (end(0, used=Usage(memory=2 * GiB)), ("COMPLETED", "exit code 0")),
        (end(1, used=Usage(memory=GiB)), ("FAILED", "exit code 1")),
        (
            end(None, XCPU, used=Usage(cpu_seconds=11.5)),
            ("TIMEOUT", "killed by SIGXCPU from inside; 11.5 s of processor time used, 10 s allowed"),
        ),
        (
            end(128 + XCPU, used=Usage(cpu_seconds=11.5)),
            ("TIMEOUT", "exit code 152; 11.5 s of processor time used, 10 s allowed"),
        ),
        (
            end(1, used=Usage(cpu_seconds=11.5)),
            ("FAILED", "exit code 1; 11.5 s of processor time used, 10 s allowed"),
        ),
        (end(None, XCPU, used=Usage(cpu_seconds=1)), ("FAILED", "killed by SIGXCPU from inside")),
        (end(2, used=Usage(processes=70)), ("FAILED", "exit code 2; 70 processes wanted, 64 allowed")),
        (end(None, XFSZ), ("FAILED", "killed by SIGXFSZ: a file larger than 1 GiB wanted")),
        (end(1, full={"/job": 256 << 20}), ("FAILED", "exit code 1; its disk was full: 256 MiB")),
        (end(1, full={"/tmp": 64 << 20}), ("FAILED", "exit code 1; its /tmp was full: 64 MiB")),
        (end(0, full={"/job": 256 << 20}), ("COMPLETED", "exit code 0")),
    ],
)
def test_what_ended_by_itself(found: tuple[str, str], expected: tuple[str, str]) -> None:
    assert found == expected


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [
        ("memory", Usage(memory=GiB * 6 // 5), ("OUT_OF_MEMORY", "stopped: 1.2 GiB of memory used, 1 GiB allowed")),
        ("memory", Usage(memory=GiB + 1), ("OUT_OF_MEMORY", "stopped: more than 1 GiB of memory used, 1 GiB allowed")),
        ("processes", Usage(processes=70), ("FAILED", "stopped: 70 processes wanted, 64 allowed")),
        (
            "cpu_seconds",
            Usage(cpu_seconds=10.04),
            ("TIMEOUT", "stopped: more than 10 s of processor time used, 10 s allowed"),
        ),
    ],
)
def test_what_was_stopped(limit: str, used: Usage, expected: tuple[str, str]) -> None:
    assert ends.passed(limit, used, LIMITS) == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("memory", 0, "0 bytes"),
        ("memory", 1023, "1023 bytes"),
        ("disk", 1536, "1.5 KiB"),
        ("memory", 1 << 50, "1024 TiB"),
        ("timeout", 0.3, "0.3 s"),
        ("timeout", 0.001, "0.001 s"),
        ("timeout", 86_400, "86400 s"),
        ("cpu_seconds", 12.345, "12.3 s"),
        ("processes", 64, "64"),
    ],
)
def test_values_for_people(name: str, value: float, expected: str) -> None:
    assert said(name, value) == expected


def test_a_timer_that_is_early_takes_no_time_from_the_job() -> None:
    async def main() -> None:
        claim: Any = SimpleNamespace(job_id=None, fence=1, timeout=0.05)
        attempt, due = Attempt(claim, SimpleNamespace()), time.monotonic() + 0.05  # type: ignore[arg-type]
        attempt._time_out(due)
        assert attempt._ending is None
        (status, _), at = await asyncio.to_thread(eventually, lambda: attempt._ending)
        assert status == "TIMEOUT" and at >= due

    asyncio.run(main())
