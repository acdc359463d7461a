"""J12: processes and threads without end, while another user's jobs are to start at once."""

from __future__ import annotations

import re
import time
import uuid

import pytest

from tests.attacks.jobs import ended, running, seconds_until_started
from tests.client import Person
from tests.services import processes
from tests.stack import Stack

MOST, SECONDS = 40, 3
ENDS = re.compile(rf"TIMEOUT: .* timeout of {SECONDS} s|FAILED: (.* processes wanted, {MOST} allowed|exit code 2)")
BOMBS = {
    "shell": ("sh", "bomb() { bomb | bomb & }; bomb; sleep MARK"),
    "forks": ("python", "import os\nwhile True:\n try: os.fork()\n except OSError: pass"),
    "children": ("python", "import os, time\nwhile True:\n try: os.fork() or time.sleep(1000)\n except OSError: pass"),
    "threads": ("python", "import threading, time\nwhile True:\n try: threading.Thread(target=time.sleep, args=(1000,))"
                ".start()\n except RuntimeError: pass"),
    "vfork": ("python", "import os\nwhile True:\n try: os.posix_spawn('/bin/sleep', ['sleep', 'MARK'], {})\n"
              " except OSError: pass"),
    "ignoring": ("sh", "trap '' TERM INT HUP; while :; do (trap '' TERM; sleep MARK) & done"),
    "away": ("sh", "while :; do sh -mc 'sleep MARK &' & done"),
}  # fmt: skip


def test_they_are_capped(stack: Stack, alice: Person, bob: Person) -> None:
    mark = f"10{uuid.uuid4().int % 10**7 + 10**7}.125"
    before, limits = stack.pids(), {"processes": MOST}
    bombs = {
        name: alice.api.submit(code.replace("MARK", mark), shell=shell, limits=limits, timeout=SECONDS)
        for name, (shell, code) in BOMBS.items()
    }
    with running(alice):  # one that has done nothing
        begun = time.monotonic()
        while time.monotonic() < begun + 1.5:
            fine = bob.api.submit("(sleep 0) & wait; echo fine", wait=5)
            assert (fine["status"], fine["stdout"]) == ("COMPLETED", "fine\n")
            assert seconds_until_started(fine) < 1
        assert len(processes(mark)) <= 4 * (MOST + 10)  # what comes between two looks is bounded, too
    for name, bomb in bombs.items():
        record = ended(alice, bomb, 10)
        # Where the kernel refuses more, time ends it, or the shell gives up; else it is ended for having more.
        assert ENDS.fullmatch(f"{record['status']}: {record['reason']}"), (name, record["reason"])
    assert stack.pids() == before


@pytest.mark.parametrize("most", [2, MOST])
def test_what_is_allowed_can_be_had(alice: Person, most: int) -> None:
    code = f"for n in $(seq {most - 1}); do sleep 0.2 & done; wait; exit 0"
    job = ended(alice, alice.api.submit(code, limits={"processes": most}))
    assert (job["status"], job["reason"]) == ("COMPLETED", "exit code 0")


def test_more_cannot(alice: Person) -> None:
    code = f"for n in $(seq {MOST + 60}); do sleep 0.5 & done; wait; exit 0"
    threads = f"""
import threading, time
for n in range({MOST + 60}):
    threading.Thread(target=time.sleep, args=(0.5,)).start()
"""
    for shell, script in (("sh", code), ("python", threads)):
        job = ended(alice, alice.api.submit(script, shell=shell, limits={"processes": MOST}))
        assert job["status"] == "FAILED", job["reason"]
