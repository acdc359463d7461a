"""A24: very many streams at once, and readers that never read."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from typing import Any

from tests.attacks.conftest import MAX_STREAMS
from tests.attacks.tools import Wire, head, memory_of
from tests.client import Api, Person, events
from tests.stack import Stack
from tests.waiting import eventually

LARGE = 2 * 2**20


def open_streams(api: Api, job_id: str, count: int) -> list[Any]:
    """So many streams, each after its first event."""
    streams = [events(api, job_id) for _ in range(count)]
    for stream in streams:
        next(stream)
    return streams


def test_they_are_counted_by_user(workers: list[Api], alice: Person, bob: Person) -> None:
    """Whatever kind of stream it is, and whichever of one's tokens is used."""
    worker = workers[0].using(alice.token)
    job, other = alice.api.submit("true", delay=3600), bob.api.submit("true", delay=3600)
    streams = open_streams(worker, job["id"], MAX_STREAMS)
    second = alice.api.post("/api/tokens", {"name": "second"}).data["token"]
    for path in ("stream", "stdout?follow=true", "stderr?follow=true"):
        for token in (alice.token, second):
            target = f"/api/jobs/{job['id']}/{path}"
            with worker.client.stream("GET", target, headers=worker.headers(token)) as answer:
                assert answer.status_code == 429
                assert str(MAX_STREAMS) in str(answer.read())
    assert worker.get("/api/user").status == 200
    open_streams(workers[0].using(bob.token), other["id"], 1)[0].close()  # others are not hit
    streams.pop().close()  # one that ends makes room
    eventually(lambda: _one_more(worker, job["id"]), seconds=5)
    for stream in streams:
        stream.close()
    for person, waiting in ((alice, job), (bob, other)):
        person.api.post(f"/api/jobs/{waiting['id']}/cancel").data  # noqa: B018


def _one_more(api: Api, job_id: str) -> bool:
    with api.client.stream("GET", f"/api/jobs/{job_id}/stream", headers=api.headers()) as answer:
        return answer.status_code == 200


def test_500_of_one_token(alice: Person, bob: Person, wire: Wire, stack: Stack) -> None:
    """All at once, through the router: each worker serves as many as it may, and refuses the rest."""
    job = alice.api.submit("true", delay=3600)
    request = head("GET", f"/api/jobs/{job['id']}/stream", f"Authorization: token {alice.token}")
    with ExitStack() as opened:
        connections = [
            opened.enter_context(socket.create_connection(("127.0.0.1", wire.port), timeout=20)) for _ in range(500)
        ]
        for connection in connections:
            connection.sendall(request)
        statuses = [connection.recv(12)[-3:] for connection in connections]
        assert set(statuses) == {b"200", b"429"}
        assert statuses.count(b"200") <= MAX_STREAMS * stack.settings.server.processes
        assert bob.api.get("/api/user").status == 200
    alice.api.post(f"/api/jobs/{job['id']}/cancel").data  # noqa: B018


def test_a_reader_that_never_reads_costs_little(alice: Person, wire: Wire, stack: Stack) -> None:
    """The output is megabytes: such readers must not make a worker hold it in memory for each."""
    job = alice.api.submit(f"head -c {LARGE} /dev/zero | tr '\\0' x", wait=60)
    request = head("GET", f"/api/jobs/{job['id']}/stream", f"Authorization: token {alice.token}")
    count = 2 * MAX_STREAMS - 2
    before = memory_of(stack, "app", "nginx")
    with ExitStack() as opened:
        for _ in range(count):
            reader = opened.enter_context(socket.socket())
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect(("127.0.0.1", wire.port))
            reader.sendall(request)
            assert reader.recv(15).startswith(b"HTTP/1.1 ")
        assert alice.api.get("/api/user").status == 200
        assert memory_of(stack, "app", "nginx") - before < count * LARGE / 2
    assert list(events(alice.api, job["id"]))[-1].kind == "end"
