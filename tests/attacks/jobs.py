"""What attacks by jobs have in common: scripts that print a line for each thing that they try, and their collection.

``findings(alice, "tell('opened', open, '/etc/shadow')")`` is ``{"opened": "ENOENT"}``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.client import Person
from tests.sandbox.support import number
from tests.services import processes
from tests.stack import Stack
from tests.waiting import eventually

#: What every script begins with. `GIVEN` is what the test gave it.
PRELUDE = """
import ctypes, errno, json, os, sys
GIVEN = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)

def name_of(error):
    return errno.errorcode.get(error.errno, repr(error))

def tell(name, act, *arguments):
    "Print what came of it: the error's name, or the answer."
    try:
        answer = act(*arguments)
    except OSError as error:
        answer = name_of(error)
    told = answer if isinstance(answer, (str, int, list, dict, type(None))) else "worked"
    print(json.dumps([name, told]), flush=True)

def call(number, *arguments):
    "A system call by its number: its answer, or OSError. Addresses are to be such as bytes or buffers."
    kept = [a if isinstance(a, (bytes, ctypes.Array, ctypes.Structure)) else ctypes.c_long(a) for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *kept)
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return "worked"
"""

#: A job that says so when it has begun, and lasts until it is cancelled.
STAY = "echo up; exec sleep 1000"


def numbers(*names: str) -> dict[str, int]:
    """The numbers of those system calls that this machine has."""
    return {name: number(name) for name in names if number(name) >= 0}


def output(person: Person, job: dict[str, Any], stream: str = "stdout") -> bytes:
    """All that a job has printed."""
    body: bytes = person.api.get(f"/api/jobs/{job['id']}/{stream}").body
    return body


def ended(person: Person, job: dict[str, Any], seconds: float = 30.0) -> dict[str, Any]:
    """A job's record when it has ended."""
    record: dict[str, Any] = eventually(lambda: (seen := person.api.job(job["id"]))["finished_at"] and seen, seconds)
    return record


def submit(person: Person, code: str, given: Any = None, **fields: Any) -> dict[str, Any]:
    """Submit a script in Python that begins with the prelude."""
    return person.api.submit(PRELUDE + code, shell="python", args=[json.dumps(given)], **fields)


def findings(person: Person, code: str, given: Any = None, **fields: Any) -> dict[str, Any]:
    """Run a script in Python; returns what it told, by name."""
    job = submit(person, code, given, wait=20, **fields)
    assert job["status"] == "COMPLETED", (job["status"], job["reason"], job["stderr"][-2000:])
    return told(person, job)


def told(person: Person, job: dict[str, Any]) -> dict[str, Any]:
    """What a script told, by name."""
    return dict(json.loads(line) for line in output(person, job).splitlines())


def lines(person: Person, code: str, **fields: Any) -> list[str]:
    """Run a shell script that succeeds; returns the lines that it printed."""
    job = person.api.submit(code, wait=20, **fields)
    assert job["status"] == "COMPLETED", (job["status"], job["reason"], job["stderr"][-2000:])
    return output(person, job).decode().splitlines()


@contextmanager
def running(person: Person, code: str = STAY, **fields: Any) -> Iterator[dict[str, Any]]:
    """A job beside others, from when it has printed "up" until the end of the block."""
    job = person.api.submit(code, **fields)
    try:
        eventually(lambda: b"up\n" in output(person, job) or person.api.job(job["id"])["finished_at"])
        assert person.api.job(job["id"])["status"] == "RUNNING", person.api.job(job["id"])
        yield job
        assert person.api.job(job["id"])["status"] == "RUNNING", person.api.job(job["id"])
    finally:
        person.api.post(f"/api/jobs/{job['id']}/cancel")
        ended(person, job)


def seconds_until_started(job: dict[str, Any]) -> float:
    """From a job's submission to the start of its script."""
    created, started = (datetime.fromisoformat(job[name]) for name in ("created_at", "started_at"))
    return (started - created).total_seconds()


def within(stack: Stack) -> list[int]:
    """The processes of all jobs of a service, their inits among them."""
    parents, others = {}, set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            front, _, fields = path.read_text().rpartition(")")
        except OSError:
            continue  # it has ended
        parents[int(path.parent.name)] = int(fields.split()[1])
        if front.endswith("(slirp4netns"):  # the network of a launcher
            others.add(int(path.parent.name))
    runner = stack.pids()["runner_00"]
    spawners = {pid for pid, parent in parents.items() if parent == runner}
    launchers = {pid for pid, parent in parents.items() if parent in spawners}
    found, more = set[int](), launchers
    while more := {pid for pid, parent in parents.items() if parent in more}:
        found |= more
    return sorted(found - others)


def pid_of(mark: str) -> int:
    """The host's number of the process whose command line holds `mark`."""
    found: list[int] = eventually(lambda: processes(mark))
    return found[0]
