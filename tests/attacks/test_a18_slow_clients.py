"""A18: clients that send their headers or bodies slowly, or never read: they cost a connection, for a limited time."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from tests.attacks.conftest import CLIENT_TIMEOUT
from tests.attacks.tools import head, memory_of
from tests.client import Person
from tests.stack import Stack
from tests.waiting import eventually

COUNT = 2000  # that send slowly
READERS = 20  # that never read
LARGE = 16 * 2**20  # more than the kernel and the router take ahead of a reader
LATEST = CLIENT_TIMEOUT + 6  # seconds: what is sent to a client that has not asked well may linger


@contextmanager
def open_files(count: int) -> Iterator[int]:
    """Let this process have so many more files open, or as many as it may; says how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = 10**6 if hard == resource.RLIM_INFINITY else hard
    wanted = min(count + 512, allowed)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield min(count, wanted - 512)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has ended the connection; what it sent before is dropped."""
    try:
        while chunk := connection.recv(65536, socket.MSG_DONTWAIT):
            assert chunk
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def connect(stack: Stack, request: bytes, buffer: int = 0) -> socket.socket:
    """A connection on which so much has been sent, with room for so many bytes of an answer."""
    connection = socket.socket()
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.connect(("127.0.0.1", stack.settings.server.port))
    connection.sendall(request)
    return connection


def test_they_hold_up_nobody_and_are_dropped(alice: Person, bob: Person, stack: Stack) -> None:
    """All kinds at once; a fifth of them go on sending a byte now and then, which prolongs nothing for headers."""
    job = alice.api.submit(f"head -c {LARGE} /dev/zero", wait=60)
    credentials = f"Authorization: token {alice.token}"
    submit = head("POST", "/api/jobs", credentials, "Content-Type: application/json", "Content-Length: 1000")
    starts = [b"GE", head("GET", "/api/jobs", credentials)[:-2], submit, submit + b"{", b""]
    before = memory_of(stack, "app")
    with open_files(COUNT) as count, ExitStack() as opened:
        begun = time.monotonic()
        download = head("GET", f"/api/jobs/{job['id']}/stdout", credentials)
        readers = [opened.enter_context(connect(stack, download, 4096)) for _ in range(READERS)]
        slow = [opened.enter_context(connect(stack, starts[number % len(starts)])) for number in range(count)]
        assert {reader.recv(15) for reader in readers} == {b"HTTP/1.1 200 OK"}
        latest = 0.0
        while time.monotonic() - begun < CLIENT_TIMEOUT - 1:
            with suppress(ConnectionError):  # it may be over already
                for connection in slow[1 :: len(starts)]:
                    connection.sendall(b"X")
            asked = time.monotonic()
            bob.api.get("/api/user").data  # noqa: B018
            latest = max(latest, time.monotonic() - asked)
        assert latest < 1
        assert memory_of(stack, "app") - before < READERS * LARGE / 4
        eventually(lambda: all(is_closed(connection) for connection in slow[-5:]), LATEST)
        eventually(lambda: all(is_closed(connection) for connection in slow), LATEST)
        clients = {reader.getsockname()[1] for reader in readers}
        eventually(lambda: not held_by_router(stack.settings.server.port, clients), LATEST)
        assert all(0 < received(reader) < LARGE for reader in readers)


def held_by_router(port: int, clients: set[int]) -> list[int]:
    """Which of the clients' ports the router still has an open connection to, by the kernel's table."""
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    ends = [(int(row[1].split(":")[1], 16), int(row[2].split(":")[1], 16), row[3]) for row in rows]
    return [theirs for ours, theirs, state in ends if ours == port and theirs in clients and state == "01"]


def received(connection: socket.socket) -> int:
    """How many bytes there are to read before it ends."""
    count = 0
    try:
        while chunk := connection.recv(65536):
            count += len(chunk)
    except ConnectionError:
        pass
    return count
