"""J4: signals to, and reaches into, every process of the host, of the service and of another user's job."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from tests.attacks.jobs import findings, numbers, pid_of, running
from tests.client import Person
from tests.stack import Stack

CODE = """
import resource
own = {int(name) for name in os.listdir("/proc") if name.isdigit()} | {1}
def reached(act):
    answers = {}
    for pid in sorted({*GIVEN["pids"], *range(2, 300)} - own):
        try:
            act(pid)
            answers.setdefault("worked", pid)
        except OSError as error:
            answers.setdefault(name_of(error), pid)
    return sorted(answers)
calls = GIVEN["calls"]
tell("signal", reached, lambda pid: os.kill(pid, 9))
tell("group", reached, lambda pid: os.killpg(pid, 9))
tell("pidfd_open", reached, os.pidfd_open)
tell("priority", reached, lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 19))
tell("scheduler", reached, os.sched_getscheduler)
tell("limits", reached, lambda pid: resource.prlimit(pid, resource.RLIMIT_CPU))
tell("session", reached, os.getsid)
tell("ptrace", reached, lambda pid: call(calls["ptrace"], 16, pid, 0, 0))
tell("process_vm_readv", reached, lambda pid: call(calls["process_vm_readv"], pid, 0, 0, 0, 0, 0))
tell("process_vm_writev", reached, lambda pid: call(calls["process_vm_writev"], pid, 0, 0, 0, 0, 0))
tell("kcmp", reached, lambda pid: call(calls["kcmp"], pid, pid, 1, 0, 0))
tell("a child", lambda: call(calls["process_vm_readv"], os.getpid(), 0, 0, 0, 0, 0))
tell("init", os.kill, 1, 9)
tell("init's priority", os.setpriority, os.PRIO_PROCESS, 1, 19)
tell("all", os.kill, -1, 9)
tell("still here", os.getpid)
"""


def test_none_is_reached(stack: Stack, alice: Person, bob: Person) -> None:
    mark = str(900_000 + uuid.uuid4().int % 100_000)
    with running(bob, f"echo up; exec sleep {mark}"):
        pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
        before = stack.pids()
        assert {pid_of(mark), os.getpid(), *before.values()} <= set(pids)
        calls = numbers("ptrace", "process_vm_readv", "process_vm_writev", "kcmp")
        found = findings(alice, CODE, {"pids": pids, "calls": calls})
        assert stack.pids() == before
        assert pid_of(mark)
    assert found.pop("still here") in range(2, 5)
    assert found.pop("init") in ("EPERM", None)  # it takes no signal from within
    assert found.pop("init's priority") in ("EPERM", "EACCES", None)
    assert found.pop("all") in ("ESRCH", None)  # nobody else, or its own children
    assert found == {
        **{way: ["ESRCH"] for way in ("signal", "group", "pidfd_open", "priority", "scheduler", "limits", "session")},
        **{way: ["EPERM"] for way in ("ptrace", "process_vm_readv", "process_vm_writev", "kcmp")},
        "a child": "EPERM",
    }
