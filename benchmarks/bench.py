"""What the scenarios share: a real stack with users, load on it, and the yardstick of a bare sandbox."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import cpu
from benchmarks.client import Connection, UnexpectedAnswer
from tests.stack import Stack

USERS = 100
HELLO = {"code": "echo hello"}
LATER = {**HELLO, "delay": 86_400}  # stored now, not run while the storing is measured

# Users may submit as fast as they can: what is measured is the service, not its limits.
OVERRIDES: dict[str, dict[str, Any]] = {
    "users": {"max_queued": 1_000_000, "jobs_per_minute": 1_000_000, "max_streams": 1000},
    "limits": {"output": {"default": "128MiB"}},
}


@dataclass(frozen=True)
class Bench:
    """A running stack, and users of it."""

    stack: Stack
    tokens: Sequence[str]  # one of each user
    overrides: Mapping[str, Any]  # sections of the stack's configuration
    quick: bool = False

    @property
    def port(self) -> int:
        return self.stack.settings.server.port

    def scaled(self, count: int) -> int:
        """`count`, or with ``--quick`` a fifth of it."""
        return max(1, count // 5) if self.quick else count

    @property
    def rounds(self) -> int:
        return 1 if self.quick else 3

    @classmethod
    async def set_up(cls, stack: Stack, overrides: Mapping[str, Any], quick: bool) -> Bench:
        """Make the users, through the API, and run a few jobs of each to warm up."""
        admin = await Connection.open(stack.settings.server.port)

        async def user(name: str) -> str:
            (await admin.request("POST", "/api/users", stack.admin_token, {"username": name})).data()
            made = await admin.request("POST", "/api/tokens", stack.admin_token, {"name": "bench", "username": name})
            token: str = made.data()["token"]
            return token

        tokens = [await user(f"user{number:03}") for number in range(USERS)]
        admin.close()
        bench = cls(stack, tokens, overrides, quick)
        await bench.end_to_end(3 * USERS)
        return bench

    async def in_parallel(
        self, count: int, connections: int, tokens: Sequence[str], act: Callable[[Connection, str], Any]
    ) -> float:
        """`act` so often over so many kept connections, users in turn; returns how often in a second."""
        opened = [await Connection.open(self.port) for _ in range(connections)]
        left = iter(range(count))

        async def work(number: int) -> None:
            for index in left:
                await act(opened[number], tokens[(number if connections >= len(tokens) else index) % len(tokens)])

        began = time.perf_counter()
        await asyncio.gather(*map(work, range(connections)))
        seconds = time.perf_counter() - began
        for connection in opened:
            connection.close()
        return count / seconds

    async def end_to_end(self, jobs: int) -> float:
        """Each user posts a job and waits for its end, again and again; what it printed is checked. Jobs a second."""
        return await self.in_parallel(jobs, USERS, self.tokens, run_hello)

    async def cancel_all(self) -> None:
        """Cancel what the users have waiting."""
        connection = await Connection.open(self.port)
        for token in self.tokens:
            while (await connection.request("POST", "/api/jobs/cancel", token, {})).data()["cancelled"] >= 20_000:
                pass
        connection.close()


async def run_hello(connection: Connection, token: str) -> None:
    """One job from its POST to its end; raises `UnexpectedAnswer` unless it printed what it should."""
    job = (await connection.request("POST", "/api/jobs?wait=120", token, HELLO)).data()
    if (job["status"], job["stdout"], job["stderr"], job["return_code"]) != ("COMPLETED", "hello\n", "", 0):
        raise UnexpectedAnswer(f"a job ended otherwise: {job}")


async def bare_sandbox(jobs: int, at_once: int) -> dict[str, float]:
    """The yardstick, in a process of its own: starts of a simple bubblewrap a second, and the median of one's ms."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.bare", str(jobs), str(at_once), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError("the simple bubblewrap line does not run here")
    figures: dict[str, float] = json.loads(out)
    return figures


class Shares:
    """Where the processor's time of some work went: ``with Shares(stack, items) as shares: …``; then `shares.text`."""

    def __init__(self, stack: Stack, items: int) -> None:
        self._programs = stack.pids()
        self._items = items
        self.milliseconds: dict[str, float] = {}

    def __enter__(self) -> Shares:
        self._before = cpu.by_part(self._programs)
        return self

    def __exit__(self, *_: object) -> None:
        used = cpu.difference(self._before, cpu.by_part(self._programs))
        shares = {part: seconds / self._items * 1e3 for part, seconds in used.items()}
        self.milliseconds = dict(sorted(shares.items(), key=lambda share: -share[1]))

    @property
    def text(self) -> str:
        """Such as ``CPU ms each: machine 6.9, sandbox 2.4, app 1.6``."""
        return "CPU ms each: " + ", ".join(f"{k} {v:.2f}" for k, v in self.milliseconds.items() if v >= 0.01)


def memory_of(pid: int) -> int:
    """Bytes of a process's resident memory."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
