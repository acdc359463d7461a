"""A46: one user's queries are slow, or wait for a lock: others are served, or are told so soon. See also
tests/faults/test_database_away.py, for a database that is restarted, hangs, or is away.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.attacks.tools import Wire, head
from tests.client import Api, Person
from tests.database import Transactions
from tests.stack import Stack
from tests.waiting import eventually

SLACK = 2.0  # seconds, on a busy machine


FLOOD = """
import socket, sys
port, request = int(sys.argv[1]), sys.stdin.buffer.read()
asked = [socket.create_connection(("127.0.0.1", port)) for _ in range(64)]
for connection in asked: connection.sendall(request)
print("asked", flush=True)
while True:
    for number, connection in enumerate(asked):
        while connection.recv(2**20): pass
        connection.close()
        asked[number] = socket.create_connection(("127.0.0.1", port))
        asked[number].sendall(request)
"""


def test_a_flood_of_long_lists_leaves_room_for_others(person: Callable[..., Person], bob: Person, wire: Wire) -> None:
    """A user asks, from 64 connections at any moment, for what takes the longest."""
    owner = person(max_running=0)
    job = {"code": "x" * 1000, "args": ["y" * 900], "delay": 3600}
    owner.api.post("/api/jobs/batch", {"jobs": [job] * 500}).data  # noqa: B018
    request = head("GET", "/api/jobs?limit=500", f"Authorization: token {owner.token}")
    argv = [sys.executable, "-c", FLOOD, str(wire.port)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as flood:
        try:
            assert flood.stdin and flood.stdout
            flood.stdin.write(request)
            flood.stdin.close()
            assert flood.stdout.readline() == b"asked\n"
            times = []
            for _ in range(12):
                begun = time.monotonic()
                bob.api.get("/api/user").data  # noqa: B018
                times.append(time.monotonic() - begun)
        finally:
            flood.kill()
    assert sorted(times)[6] < 1.5, times  # of which most is for the machine, which is busy with it
    eventually(lambda: owner.api.post("/api/jobs/cancel", {}, unavailable=True).status == 200)


def test_what_waits_for_a_lock_is_given_up(
    alice: Person, bob: Person, stack: Stack, database: Transactions, workers: list[Api]
) -> None:
    """All of a worker's connections wait: within the limits of a statement and of the queue there is an answer."""
    most = stack.settings.database.statement_timeout + stack.settings.database.pool_timeout
    count = 4 * stack.settings.database.pool_size
    worker = workers[0]
    with database.engine.begin() as connection, ThreadPoolExecutor(count) as pool:
        connection.exec_driver_sql("LOCK TABLE job")
        begun = time.monotonic()
        asked = [
            pool.submit(worker.get, "/api/jobs", token=alice.token, headers={"X-Request-Id": "x"}, unavailable=True)
            for _ in range(count)
        ]
        # What is known needs no connection.
        assert worker.get("/api/shells", token=bob.token, unavailable=True).status in (200, 503)
        answers = [future.result() for future in asked]
        assert time.monotonic() - begun < most + SLACK
        assert {answer.status for answer in answers} == {503}
        assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers)
    assert worker.get("/api/jobs", token=alice.token, headers={"X-Request-Id": "x"}).status == 200
