"""J32: what the kernel tells of the host, of other users, and of itself."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

from tests.attacks.jobs import findings, number, running
from tests.client import Person
from tests.stack import Stack

CODE = """
for path in ("/proc/cmdline", "/proc/keys", "/proc/kallsyms"):
    tell(path, lambda: open(path).read())
for path in ("/proc/kcore", "/proc/kmsg", "/dev/kmsg", "/dev/mem", "/proc/sched_debug", "/proc/timer_list",
             "/proc/slabinfo", "/proc/vmallocinfo", "/proc/pagetypeinfo", "/proc/kpagecount", "/proc/kpageflags",
             "/proc/kpagecgroup", "/sys/kernel", "/sys/class/dmi/id/product_uuid", "/sys/devices", "/sys/module",
             "/sys/kernel/notes", "/sys/firmware", "/boot", "/lib/modules/x", "/proc/1/stack", "/proc/1/mountinfo",
             "/var/log/dmesg", "/etc/machine-id", "/etc/hostname", "/run/utmp", "/var/log/wtmp"):
    tell(path, lambda: os.listdir(path) if os.path.isdir(path) else open(path).read(10))
buffer = ctypes.create_string_buffer(4096)
for kind in (3, 9, 10):
    tell(f"syslog {kind}", call, GIVEN["syslog"], kind, buffer, 4096)
for name in ("mountinfo", "mounts", "mountstats", "cgroup", "cpuset", "maps", "limits", "status", "uid_map", "cmdline"):
    tell(name, lambda: open(f"/proc/self/{name}").read())
for name in ("net/unix", "net/tcp", "net/tcp6", "net/udp", "net/packet", "net/netlink", "sysvipc/shm", "sysvipc/msg",
             "sysvipc/sem", "locks"):
    tell(name, lambda: open(f"/proc/{name}").read().splitlines()[1:] if name != "locks" else open("/proc/locks").read())
tell("host name", lambda: [os.uname().nodename, open("/proc/sys/kernel/hostname").read().strip(), os.uname()[1]])
"""


def test_little(stack: Stack, alice: Person, bob: Person) -> None:
    with running(bob, name="neighbours-job"), socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        found = findings(alice, CODE, {"syslog": number("syslog")})
    assert found.pop("host name") == ["job"] * 3
    assert {found.pop(path) for path in ("/proc/cmdline", "/proc/keys", "/proc/kallsyms")} == {""}
    assert {found.pop(f"syslog {kind}") for kind in (3, 9, 10)} == {"EPERM"}
    for name in ("net/tcp", "net/tcp6", "net/udp", "net/packet", "sysvipc/shm", "sysvipc/msg", "sysvipc/sem"):
        assert found.pop(name, []) in ([], "ENOENT"), name  # the tables are empty, not only without this
    texts = {name: str(found.pop(name)) for name in ("mountinfo", "mounts", "mountstats", "cgroup", "cpuset", "maps",
             "limits", "status", "uid_map", "cmdline", "net/unix", "net/netlink", "locks")}  # fmt: skip
    told = [stack.folder.name, alice.username, bob.username, "neighbours-job", "/root", "/home",
            "postgres", "supervisor", "shs-", "shell-service", str(port), str(Path.cwd())]  # fmt: skip
    assert [(name, word) for name, text in texts.items() for word in told if word in text] == []
    assert not re.search(r":/.+", texts["cgroup"])  # its own is the root of what it sees
    assert len(found) == 27
    assert {path: answer for path, answer in found.items() if answer not in ("ENOENT", "EACCES", "EPERM")} == {}
    assert os.path.exists("/sys/kernel")  # so there was something to see
