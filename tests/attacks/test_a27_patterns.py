"""A27: wildcards and patterns where texts are compared; texts that make a careless pattern run for ever."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.attacks.tools import OPERATIONS, Belongings, Wire
from tests.client import Api, Person

BOMBS = {
    "quotes": '"' * 7_001,
    "one quote": '"' + "a" * 7_000,
    "blanks": " " * 7_000 + "x",
    "digits": "1" * 7_000 + "x",
    "letters": "a" * 7_000 + "!",
    "commas": "wait=," * 1_000,
    "equals": "wait " + "= " * 3_000,
    "ranges": "bytes=" + "0-1," * 1_500,
    "evil": "(a+)+$" * 1_000,
}


def test_wildcards_are_letters(admin: Api, person: Callable[..., Person]) -> None:
    """A search with them finds nothing of what they would stand for."""
    owner = person(max_running=0)
    owner.api.submit(name="a.b")
    name = owner.username
    for text in ("%", "_", f"_{name[1:]}", f"{name[:-1]}%", f"{name[:-1]}.", ".*", name.upper()):
        answer = admin.get("/api/jobs", params={"submitter": text})
        assert answer.data == [], text
    for text in ("a_b", "a-b", "...", "A.B", "a"):
        assert owner.api.get("/api/jobs", params={"name": text}).data == [], text
    for text in ("%", "a%", "*", "a.*", "[a].b", "a\\.b"):
        assert owner.api.get("/api/jobs", params={"name": text}).status == 400, text
    assert owner.api.get("/api/jobs", params={"name": "a.b"}).data
    owner.api.post("/api/jobs/cancel", {}).data  # noqa: B018


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_header_takes_long_to_read(wire: Wire, alice: Person, belongings: Belongings, bomb: str) -> None:
    """Each that an endpoint says it reads, and those that all do."""
    for operation in OPERATIONS:
        address = operation.address(**next(belongings.of(operation)))
        for name in {*operation.endpoint.headers, "Authorization", "Accept", "Content-Type", "If-Range"}:
            given = "" if name == "Authorization" else alice.token
            begun = time.monotonic()
            if operation.method == "GET" and "stream" not in operation.route.path:
                reply = wire.ask("GET", address, f"{name}: {BOMBS[bomb]}", token=given, anew=True)
                assert reply.status < 500
            elif operation.method == "POST" and name != "Content-Type":
                headers = ["Content-Type: application/json", f"{name}: {BOMBS[bomb]}"]
                reply = wire.ask("POST", address, *headers, token=given, body=b"{", anew=True)
                assert reply.status in (400, 401, 403, 415), (operation, name)
            assert time.monotonic() - begun < 0.5, (operation, name)


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_text_takes_long_to_check(alice: Person, bomb: str) -> None:
    text = BOMBS[bomb] * 20
    for field in ("name", "run_at", "shell", "on_lost"):
        begun = time.monotonic()
        assert alice.api.post("/api/jobs", {"code": "true", field: text}).status == 400
        assert time.monotonic() - begun < 0.5
    begun = time.monotonic()
    assert alice.api.post("/api/jobs", {"code": "true", "env": {text: "x"}}).status == 400
    assert time.monotonic() - begun < 0.5
