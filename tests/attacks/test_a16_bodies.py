"""A16: bodies that are endless, announced as endless, or of a length that can be read in two ways."""

from __future__ import annotations

import json
import select
import socket

import pytest

from tests.attacks.tools import Reply, Wire, first_answer, head, memory_of
from tests.client import Person
from tests.stack import Stack

JSON = "Content-Type: application/json"
SUBMIT = b'{"code": "true"}'
LITTLE = 16 * 2**20  # bytes of memory, of a body of which none should be kept


def submit(alice: Person, *headers: str) -> bytes:
    return head("POST", "/api/jobs", f"Authorization: token {alice.token}", JSON, *headers)


def code_of(reply: Reply) -> tuple[int, str]:
    return reply.status, json.loads(reply.body)["data"]["code"]


def test_10_gb_are_refused_unread(wire: Wire, alice: Person, stack: Stack) -> None:
    before = memory_of(stack, "app", "nginx")
    reply = wire.first(submit(alice, "Content-Length: 10000000000") + b" " * 100_000)
    assert code_of(reply) == (413, "too_large")
    assert memory_of(stack, "app", "nginx") - before < LITTLE


def test_an_endless_body_is_refused_early(alice: Person, stack: Stack) -> None:
    before, sent = memory_of(stack, "app", "nginx"), 0
    most = stack.settings.server.max_body
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", stack.settings.server.port), timeout=20) as connection:
        connection.sendall(submit(alice, "Transfer-Encoding: chunked"))
        try:
            while sent < 20 * most and not select.select([connection], [], [], 0)[0]:
                connection.sendall(chunk)
                sent += len(chunk)
        except (ConnectionError, TimeoutError):
            pass
        assert code_of(first_answer(connection)) == (413, "too_large")
    assert sent <= 4 * most
    assert memory_of(stack, "app", "nginx") - before < LITTLE


LENGTHS = [
    ["Content-Length: 16", "Transfer-Encoding: chunked"], ["Transfer-Encoding: chunked", "Content-Length: 16"],
    ["Content-Length: +16"], ["Content-Length: 1_6"], ["Content-Length: -1"], ["Content-Length: 0x10"],
    ["Content-Length: 16", "Content-Length: 17"], ["Content-Length: 16, 16"], ["Content-Length: 16 "],
    ["Content-Length: 99999999999999999999999999"], ["Content-Length:"], ["Content-Length: "],
    ["Transfer-Encoding: gzip"], ["Transfer-Encoding: chunked, chunked"], ["Transfer-Encoding: xchunked"],
    ["Transfer-Encoding: identity", "Content-Length: 16"], ["Transfer-Encoding: gzip, chunked"],
    ["Transfer-Encoding : chunked"], ["Transfer-Encoding:\x0bchunked"], [" Transfer-Encoding: chunked"],
]  # fmt: skip
# Whoever takes the length in another way than the router finds a second request behind the first.
HIDDEN = b"GET /api/tokens HTTP/1.1\r\nHost: localhost\r\nX: "


@pytest.mark.parametrize("headers", LENGTHS, ids=lambda headers: "|".join(headers))
@pytest.mark.parametrize("body", [SUBMIT + HIDDEN, b"0\r\n\r\n" + HIDDEN, b"5c\r\n" + HIDDEN + b"\r\n0\r\n\r\n"])
def test_lengths_that_can_be_read_in_two_ways(wire: Wire, alice: Person, headers: list[str], body: bytes) -> None:
    """None is taken, none hides a request, and none spoils the connection to a worker for who comes next."""
    reply = wire.send(submit(alice, *headers) + body)
    if headers == ["Content-Length: 16 "]:  # blanks around a value mean nothing
        assert reply.status == (200 if body.startswith(SUBMIT) else 400)
    else:
        assert reply.status in (400, 411, 413, 501), reply
    assert b"HTTP/1.1 " not in reply.body
    for _ in range(3):
        assert json.loads(wire.ask("GET", "/api/shells", token=alice.token).body)["status"] == "success"
