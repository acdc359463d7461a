"""All at once: bombs of forks, memory and disk, a flood, and what tries to stay. Nobody notices, nothing is left."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

from tests.attacks.jobs import ended, seconds_until_started, within
from tests.attacks.test_j19_daemons import STAYERS
from tests.client import Person
from tests.services import processes
from tests.stack import Stack
from tests.waiting import eventually

SECONDS = 3
LIMITS = {
    "processes": 50,
    "memory": "64MiB",
    "disk": "32MiB",
    "file_size": "32MiB",
    "output": "1MiB",
    "cpu_seconds": 20,
}
# Each goes on until it is ended, but the one of which the rest is to stay.
BOMBS = {
    "forks": "fork() { sleep {mark} & fork | fork & }; fork; while :; do sleep {mark}; done",
    "memory": "exec /usr/bin/python3 -c 'kept = []\nwhile True: kept.append(bytes([1]) * 4_000_000)' {mark}",
    "disk": ": {mark}; while :; do head -c 30M /dev/zero > ~/x; head -c 60M /dev/zero > /tmp/x; rm ~/x /tmp/x; done",
    "flood": "head -c 1G /dev/zero & cat /dev/zero >&2 & sleep {mark}",
    "stays": STAYERS + "exit 0",
}


def test_nobody_notices(stack: Stack, alice: Person, bob: Person) -> None:
    mark = f"10{uuid.uuid4().int % 10**7 + 10**7}.25"
    alice.api.submit("true", wait=10), bob.api.submit("true", wait=10)  # so that both have what is kept for a user
    before, descriptors, groups, files = stack.pids(), open_files(stack), control_groups(), temporary(stack)
    bombs = {
        name: alice.api.submit(
            code.replace("{mark}", mark), limits=LIMITS, timeout=20 if name in ("memory", "stays") else SECONDS
        )
        for name, code in BOMBS.items()
    }
    slowest, begun = 0.0, time.monotonic()
    while time.monotonic() < begun + SECONDS:
        job = bob.api.submit("(echo fine) | cat", wait=5)
        assert (job["status"], job["stdout"]) == ("COMPLETED", "fine\n")
        slowest = max(slowest, seconds_until_started(job))
    assert slowest < 1
    ends = {name: ended(alice, bomb)["status"] for name, bomb in bombs.items()}
    assert ends.pop("forks") in ("FAILED", "TIMEOUT")
    assert ends.pop("disk") in ("OUT_OF_MEMORY", "TIMEOUT")
    assert ends == {"memory": "OUT_OF_MEMORY", "flood": "TIMEOUT", "stays": "COMPLETED"}
    assert processes(mark) == []
    assert stack.pids() == before
    assert control_groups() <= groups
    assert temporary(stack) == files
    assert list(stack.settings.output_dir.rglob("*.tmp")) == []
    eventually(lambda: within(stack) == [] and open_files(stack) <= descriptors, 5)  # mounts live by these


def open_files(stack: Stack) -> int:
    """How many descriptors the runner has, connections aside; with some it holds the file systems of jobs."""
    folder = f"/proc/{stack.pids()['runner_00']}/fd"
    return sum(not os.readlink(f"{folder}/{name}").startswith("socket:") for name in os.listdir(folder))


def control_groups() -> set[str]:
    """Control groups of this host's jobs."""
    return {str(path) for path in Path("/sys/fs/cgroup").rglob("runner_*-*/*") if path.is_dir()}


def temporary(stack: Stack) -> set[str]:
    """Files in the folders that everybody may write to, and in the service's own, outputs and logs aside."""
    ours = {str(path) for name in ("run", "secrets") for path in (stack.settings.data_dir / name).rglob("*")}
    return ours | {str(path) for folder in ("/dev/shm", "/var/tmp") for path in Path(folder).glob("*job*")}
