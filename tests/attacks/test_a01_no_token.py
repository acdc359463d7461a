"""A1: no token, or one that is none any more, on every route and with every method."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from baselayer import token as tokens
from tests.attacks.tools import OPERATIONS, PROTECTED, Belongings, Operation, Reply, Wire
from tests.client import Api, Person, new_person
from tests.waiting import eventually

Unchanged = Callable[[], AbstractContextManager[None]]
Attempt = tuple[list[str], str]  # header lines, and what is put behind the address

KINDS = [
    *("none", "empty", "scheme alone", "bare", "garbage", "wrong checksum", "unknown", "of nobody as Bearer"),
    *("basic", "expired", "revoked", "rotated", "deactivated", "in the query", "in a cookie", "in another header"),
]


@pytest.fixture(scope="module")
def attempts(admin: Api, alice: Person, wire: Wire) -> Iterator[dict[str, Attempt]]:
    """Ways to come without a token that is good here and now."""

    def line(token: str) -> Attempt:
        return [f"Authorization: token {token}"], ""

    def made(**fields: int) -> dict[str, str]:
        record: dict[str, str] = alice.api.post("/api/tokens", {"name": "lost", **fields}).data
        return record

    gone, good, flipped = new_person(admin), alice.token, "A" if alice.token[-1] != "A" else "B"
    expired, revoked, rotated = made(expires_in=1)["token"], made(), made()
    alice.api.delete(f"/api/tokens/{revoked['id']}").data  # noqa: B018
    alice.api.post(f"/api/tokens/{rotated['id']}/rotate").data  # noqa: B018
    admin.patch(f"/api/users/{gone.username}", {"active": False}).data  # noqa: B018
    stopped = [expired, revoked["token"], rotated["token"], gone.token]
    eventually(lambda: {wire.ask("GET", "/api/user", token=token, anew=True).status for token in stopped} == {401}, 3)
    yield {
        "none": ([], ""),
        "empty": (["Authorization:"], ""),
        "scheme alone": (["Authorization: token"], ""),
        "bare": ([f"Authorization: {good}"], ""),
        "garbage": line("\udcff%00"),
        "wrong checksum": line(good[:-1] + flipped),
        "unknown": line(tokens.mint()),
        "of nobody as Bearer": ([f"Authorization: Bearer {tokens.mint()}"], ""),
        "basic": ([f"Authorization: Basic {good}"], ""),
        "expired": line(expired),
        "revoked": line(revoked["token"]),
        "rotated": line(rotated["token"]),
        "deactivated": line(gone.token),
        "in the query": ([], f"?token={good}"),
        "in a cookie": ([f"Cookie: token={good}; Authorization={good}; session={good}"], ""),
        "in another header": ([f"X-Authorization: token {good}", f"Proxy-Authorization: token {good}"], ""),
    }


def attempt(wire: Wire, operation: Operation, method: str, address: str, lines: list[str]) -> Reply:
    body = b"" if operation.body is None or method == "HEAD" else json.dumps(operation.body).encode()
    return wire.ask(method, address, *lines, "Content-Type: application/json", body=body, anew=True)


@pytest.mark.parametrize("kind", KINDS)
def test_every_route_is_shut(
    wire: Wire, belongings: Belongings, unchanged: Unchanged, attempts: dict[str, Attempt], kind: str
) -> None:
    """Addresses name what is really there: an answer that differs, however little, would tell of it."""
    lines, query = attempts[kind]
    told = set()
    with unchanged():
        for operation in PROTECTED:
            address = operation.address(**next(belongings.of(operation))) + query
            reply = attempt(wire, operation, operation.method, address, lines)
            assert reply.status == 401, f"{operation}: {reply.body[:200]!r}"
            assert reply.headers["www-authenticate"] == 'token realm="api"'
            told.add((reply.body, frozenset(reply.headers)))
            if operation.method == "GET":
                reply = attempt(wire, operation, "HEAD", address, lines)
                assert (reply.status, reply.body) == (401, b""), operation
    assert len(told) == 1
    assert json.loads(told.pop()[0])["message"].startswith("A valid token is needed")


def test_these_alone_are_open() -> None:
    """What somebody without a token may ask; `/metrics` looks at the address itself, see test_a22_forged_origin.py."""
    opened = {str(operation) for operation in OPERATIONS if operation not in PROTECTED}
    assert opened == {"GET /api/sysinfo", "GET /api/openapi.json", "GET /metrics"}


def test_options_say_what_methods_there_are_and_nothing_else(wire: Wire, belongings: Belongings) -> None:
    for operation in OPERATIONS:
        address = operation.address(**next(belongings.of(operation)))
        reply = wire.ask("OPTIONS", address, "Origin: https://evil.example", "Access-Control-Request-Method: POST")
        assert reply.status == 405, operation
        assert operation.method in reply.headers["allow"].split(", ")
        assert json.loads(reply.body)["message"] == "This address does not know that method."


@pytest.mark.parametrize("scheme", ["token", "Token", "Bearer", "bearer"])
def test_a_good_token_opens_them(alice: Person, wire: Wire, scheme: str) -> None:
    """What the other tests would say as well if nothing ever opened."""
    assert wire.ask("GET", "/api/user", f"Authorization: {scheme} {alice.token}", anew=True).status == 200
