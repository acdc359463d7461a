"""J2: the database, the supervisor, the web workers, and whatever else listens on the host or in another's job."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

from tests.attacks.jobs import findings, running
from tests.client import Person
from tests.stack import Stack

LISTEN = """
import socket, time
server = socket.create_server(("127.0.0.1", 7777))
abstract = socket.socket(socket.AF_UNIX)
abstract.bind("\\0meet")
abstract.listen()
print("up", flush=True)
time.sleep(1000)
"""
CODE = """
import socket
for kind, address in GIVEN:
    family = getattr(socket, kind)
    tell(f"{kind} {address}", socket.socket(family).connect, tuple(address) if isinstance(address, list) else address)
tell("any", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).bind(("0.0.0.0", 53)))
"""


def test_nothing_answers(stack: Stack, alice: Person, bob: Person) -> None:
    sockets = stack.settings.socket_dir
    ours = [sockets / "supervisor.sock", sockets / "app_0.sock", *(sockets / "postgres").glob(".s.PGSQL.*[0-9]")]
    assert len(ours) == 3
    assert all(path.is_socket() for path in ours)
    others = ["/run/docker.sock", "/var/run/docker.sock", "/run/dbus/system_bus_socket", "/run/systemd/private",
              "/run/user/1000/bus", "/tmp/.X11-unix/X0", "/run/job/none"]  # fmt: skip
    with ExitStack() as opened, running(bob, LISTEN, shell="python"):
        hosts = opened.enter_context(socket.create_server(("0.0.0.0", 0)))  # noqa: S104 that is the point
        abstract = opened.enter_context(socket.socket(socket.AF_UNIX))
        name = f"\0attack-{os.getpid()}"
        abstract.bind(name)
        abstract.listen()
        port = hosts.getsockname()[1]
        for reached in (("127.0.0.1", port), ("127.0.0.2", port)):
            opened.enter_context(socket.create_connection(reached))
        tcp = [[address, number] for number in (port, stack.settings.server.port, 5432, 7777)
               for address in ("127.0.0.1", "127.0.0.2", "0.0.0.0")]  # noqa: S104  # fmt: skip
        wanted = [
            *(["AF_UNIX", str(path)] for path in [*ours, *others]),
            *(["AF_UNIX", text] for text in (name, "\0meet", "\0/tmp/.X11-unix/X0", "\0supervisor")),
            *(["AF_INET", address] for address in tcp),
            ["AF_INET6", ["::1", port]],
            ["AF_INET6", ["::ffff:127.0.0.1", port]],
        ]
        found = findings(alice, CODE, wanted)
    assert found.pop("any") in ("EACCES", "worked", None)  # a port of its own is no one else's
    files = {f"AF_UNIX {path}" for path in [*ours, *others]}
    assert {what: answer for what, answer in found.items() if what in files} == dict.fromkeys(files, "ENOENT")
    assert {answer for what, answer in found.items() if what not in files} <= {"ECONNREFUSED", "EADDRNOTAVAIL"}
    assert len(found) == len(wanted)
