"""A27: wildcards and patterns where texts are compared; texts that make a careless pattern run for ever."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import pytest

from tests.attacks.tools import OPERATIONS, Belongings, Wire, quickly
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
def test_no_header_takes_long_to_read(
    wire: Wire, alice: Person, person: Callable[..., Person], belongings: Belongings, bomb: str
) -> None:
    """Each that an endpoint says it reads, and those that all do, in requests that are good otherwise."""
    reader, writer = alice, person(max_running=0)
    for operation in OPERATIONS:
        if operation.method not in ("GET", "POST") or operation.route.path.endswith("/stream"):
            continue
        address = operation.address(**next(belongings.of(operation)))
        token = (reader if operation.method == "GET" else writer).token
        body = b"" if operation.body is None else json.dumps(operation.body).encode()
        for name in {*operation.endpoint.headers, "Authorization", "Accept", "Content-Type", "If-Range"}:
            given = {"Content-Type": "application/json", "Authorization": f"token {token}", name: BOMBS[bomb]}
            lines = [f"{key}: {value}" for key, value in given.items()]
            assert quickly(partial(wire.ask, operation.method, address, *lines, body=body, anew=True), 0.3).status < 500
    address = f"/api/jobs/{belongings.things['job_id'][0]}/stream"
    assert wire.ask("GET", address, f"Last-Event-ID: {BOMBS[bomb]}", token=reader.token).status == 400
    writer.api.post("/api/jobs/cancel", {}).data  # noqa: B018


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_text_takes_long_to_check(wire: Wire, alice: Person, bomb: str) -> None:
    text = BOMBS[bomb] * 20
    for field, value in (*((name, text) for name in ("name", "run_at", "shell", "on_lost")), ("env", {text: "x"})):
        body = json.dumps({"code": "true", field: value}).encode()
        ask = partial(wire.ask, "POST", "/api/jobs", "Content-Type: application/json", token=alice.token, body=body)
        assert quickly(ask, 0.3).status == 400, field
