"""A43: what goes wrong, our own mistakes included, tells nothing of the inside: no trace, path, query or version."""

from __future__ import annotations

import re

import pytest

from tests.attacks.tools import OPERATIONS, Belongings, Wire
from tests.client import Api
from tests.database import Transactions
from tests.stack import Stack
from tests.waiting import eventually

INSIDE = re.compile(
    r"Traceback|File \"|line \d+, in|site-packages|psycopg|sqlalchemy|tornado|orjson|marshmallow|uvloop|python|postgres"
    r"|SELECT|INSERT|UPDATE|relation \"|does not exist|/home|/root|/tmp|/usr|\.py|\.sock|0x[0-9a-f]{6}|nginx/\d",
    re.IGNORECASE,
)
BODIES = [
    b"", b"{", b"[" * 10_000, b"NaN", b'{"code": 1e999}', b'{"code": "\xff"}', b'{"code": "\\ud800"}', b"\x00", b"null",
    b'{"a": ' * 5_000, b'{"code": "true", "timeout": ' + b"1" * 5_000 + b"}", b'{"code": "a\\u0000"}',
]  # fmt: skip
TARGETS = [
    *("/api/none", "/api/jobs/%ff", "/api/jobs?%ff=1", "/api/jobs?limit=x", "/api/jobs/%00", "/none", "/status/x"),
    *("/api/jobs?cursor=AAAA", "/api/jobs?created_after=x", "/api/tokens/x", "/-/internal_error", "/%2e%2e/"),
]


def test_bad_requests(wire: Wire, admin: Api, belongings: Belongings, stack: Stack) -> None:
    replies = [wire.ask(method, target, token=admin.token) for target in TARGETS for method in ("GET", "POST", "PUT")]
    for operation in OPERATIONS:
        if operation.method != "GET":
            address = operation.address(**next(belongings.of(operation)))
            for body in BODIES[1:]:
                reply = wire.ask(
                    operation.method, address, "Content-Type: application/json", token=admin.token, body=body
                )
                assert reply.status == 400, operation
                replies.append(reply)
    for reply in replies:
        assert 400 <= reply.status < 500
        assert not INSIDE.search(reply.body.decode()), reply
        assert str(stack.folder) not in repr(reply)
        assert reply.headers["server"] == "nginx"
        assert "x-powered-by" not in reply.headers


@pytest.mark.parametrize("accept", ["application/json", "application/problem+json"])
def test_a_mistake_of_ours(wire: Wire, admin: Api, database: Transactions, stack: Stack, accept: str) -> None:
    """The database has not the column that a query names: that is in the log, under the answer's number."""
    database.sql("ALTER TABLE token RENAME COLUMN prefix TO elsewhere")
    try:
        reply = wire.ask("GET", "/api/tokens", f"Accept: {accept}", token=admin.token)
    finally:
        database.sql("ALTER TABLE token RENAME COLUMN elsewhere TO prefix")
    assert reply.status == 500
    assert b"Something went wrong on our side" in reply.body
    assert not INSIDE.search(reply.body.decode())
    number = reply.headers["x-request-id"]
    logs = eventually(lambda: [log for n in (0, 1) if number in (log := stack.log(f"app_0{n}"))])
    assert "token.prefix does not exist" in logs[0]
    assert wire.ask("GET", "/api/tokens", token=admin.token).status == 200
