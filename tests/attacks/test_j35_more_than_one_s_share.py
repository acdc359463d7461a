"""J35, J36: more of the processors, disks and memory than others get; the clock, the name and the life of the host."""

from __future__ import annotations

import contextlib
import os
import socket
import time

from tests.attacks.jobs import findings, numbers, running, seconds_until_started
from tests.client import Person

CODE = """
import resource, time
n = GIVEN
nice = os.getpriority(os.PRIO_PROCESS, 0)
tell("nice", lambda: nice)
tell("less nice", os.setpriority, os.PRIO_PROCESS, 0, nice - 1)
tell("nicest", os.setpriority, os.PRIO_PROCESS, 0, -20)
tell("all of its user's", os.setpriority, os.PRIO_USER, 0, -20)
tell("group", os.setpriority, os.PRIO_PGRP, 0, -20)
for name in ("FIFO", "RR"):
    tell(name, os.sched_setscheduler, 0, getattr(os, f"SCHED_{name}"), os.sched_param(1))
# size, policy SCHED_DEADLINE, flags, nice, priority, runtime, deadline, period
import struct
deadline = struct.pack("=IIQiIQQQ", 48, 6, 0, 0, 0, 10**7, 10**8, 10**8)
tell("deadline", call, n["sched_setattr"], 0, deadline, 0)
tell("processors", os.sched_setaffinity, 0, range(os.cpu_count()))
tell("one processor", os.sched_setaffinity, 0, [0])
tell("ionice", call, n["ioprio_set"], 1, 0, 1 << 13)
tell("mlock", call, n["mlock"], ctypes.create_string_buffer(1 << 20), 1 << 20)
tell("mlockall", call, n["mlockall"], 3)
tell("huge pages", call, n["mmap"], 0, 1 << 21, 3, 0x40022, -1, 0)
for name in ("RTPRIO", "NICE", "MEMLOCK", "CORE", "NOFILE", "NPROC", "FSIZE", "DATA", "MSGQUEUE"):
    number = getattr(resource, f"RLIMIT_{name}")
    hard = resource.getrlimit(number)[1]
    for kind, wanted in (("more", hard + 1), ("any", (1 << 64) - 1)):
        tell(f"{kind} {name}", call, n["prlimit64"], 0, number, (ctypes.c_uint64 * 2)(wanted, wanted), 0)
tell("OOM score", lambda: open("/proc/self/oom_score_adj").read().strip())
def write(path, text):
    with open(path, "w") as file:
        file.write(text)
tell("OOM", write, "/proc/self/oom_score_adj", "-1000")
tell("autogroup", write, "/proc/self/autogroup", "-20")
tell("clock_settime", time.clock_settime, time.CLOCK_REALTIME, 0)
tell("settimeofday", call, n["settimeofday"], (ctypes.c_long * 2)(0, 0), 0)
tell("adjtimex", call, n["adjtimex"], (ctypes.c_uint * 64)(0x8000))
tell("clock_adjtime", call, n["clock_adjtime"], 0, (ctypes.c_uint * 64)(0x8000))
import socket
tell("sethostname", socket.sethostname, "attacked")
tell("setdomainname", call, n["setdomainname"], b"attacked", 8)
tell("reboot", call, n["reboot"], 0xFEE1DEAD, 0x28121969, 0x0, 0)
tell("swapon", call, n["swapon"], b"/tmp/x", 0)
tell("swapoff", call, n["swapoff"], b"/tmp/x")
tell("acct", call, n["acct"], b"/tmp/x")
tell("vhangup", call, n["vhangup"])
"""
PRIVILEGES = ("prlimit64", "sched_setattr", "ioprio_set", "mlock", "mlockall", "mmap", "settimeofday", "adjtimex",
              "clock_adjtime", "setdomainname", "reboot", "swapon", "swapoff", "acct", "vhangup")  # fmt: skip


def test_it_is_not_to_be_had(alice: Person) -> None:
    before = time.time()
    found = findings(alice, CODE, numbers(*PRIVILEGES))
    assert found.pop("nice") == 10  # after the service's own
    assert found.pop("OOM score") == "1000"
    assert found.pop("huge pages") in ("ENOMEM", "EPERM", "EINVAL")  # of which this host may have some
    assert found.pop("autogroup") in ("EROFS", "EACCES", "ENOENT")
    assert len(found) == 42
    assert {what: a for what, a in found.items() if a not in ("EPERM", "EACCES", "EROFS", "ENOMEM", "EINVAL")} == {}
    for what in ("processors", "one processor", "ionice", "clock_settime", "settimeofday", "sethostname", "reboot"):
        assert found[what] == "EPERM", what
    assert before <= time.time() < before + 60
    assert "attacked" not in (socket.gethostname(), os.uname().nodename)


def test_nor_by_many_sessions(alice: Person, bob: Person) -> None:
    """Where the kernel shares processors between sessions, each would get as much as the whole service."""
    spin = "while :; do :; done"
    spinners = f"echo up; for n in $(seq 30); do setsid sh -c '{spin}' & done; {spin}"
    with contextlib.ExitStack() as attack:
        for _ in range(6):
            attack.enter_context(running(alice, spinners))
        for _ in range(10):
            fine = bob.api.submit("echo fine", wait=20)
            assert (fine["status"], fine["stdout"]) == ("COMPLETED", "fine\n")
            assert seconds_until_started(fine) < 1
