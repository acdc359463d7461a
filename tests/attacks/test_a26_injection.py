"""A26: SQL, format strings and templates in every text that a request can hold: taken literally or refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import quote

import pytest
from marshmallow import Schema, fields

from tests.attacks.tools import ADMIN_SCOPES, OPERATIONS, Belongings, Operation
from tests.client import Api, Person
from tests.database import Transactions

Unchanged = Callable[[], AbstractContextManager[None]]

PAYLOADS = [
    *("'; DROP TABLE job; --", "' OR '1'='1", '" OR 1=1 --', "1); SELECT pg_sleep(5); --", "'||pg_sleep(5)||'"),
    *("\\'; SELECT pg_sleep(5); --", "%s", "%(user_id)s", ":ids", "{self.__class__}", "{{7*7}}${7*7}", "$(sleep 5)"),
    "\ud7ff\x7f\x1b\\",
]
SLOW = 2.0  # seconds: less than any of them would sleep


def filled(schema: Schema, base: dict[str, Any], text: str) -> Iterator[dict[str, Any]]:
    """`base` with the text in the place of each field, in each item of lists, in keys and values of mappings."""
    for name, item in schema.fields.items():
        yield {**base, name: text}
        if isinstance(item, fields.Nested):
            inner = base.get(name) or {}
            yield from ({**base, name: one} for one in filled(item.schema, inner, text))
        elif isinstance(item, fields.List):
            yield {**base, name: [text]}
            if isinstance(item.inner, fields.Nested):
                inner = (base.get(name) or [{}])[0]
                yield from ({**base, name: [one]} for one in filled(item.inner.schema, inner, text))
        elif isinstance(item, fields.Dict):
            yield from ({**base, name: pairs} for pairs in ({text: "x"}, {"A": text}))


def asker(admin: Api, person: Person, operation: Operation) -> Api:
    """Who may ask this: a user of the test's own, where that is enough."""
    return admin if operation.scope in ADMIN_SCOPES else person.api


@pytest.mark.parametrize("payload", PAYLOADS, ids=ascii)
def test_every_field_and_parameter(
    admin: Api, person: Callable[..., Person], belongings: Belongings, database: Transactions, payload: str
) -> None:
    """What a user of the test's own stores is his; nobody else's changes, nothing is slow, and nothing is a 500."""
    attacker = person(max_running=0)
    users = database.scalar('SELECT count(*) FROM "user"')
    for operation in OPERATIONS:
        if "stream" in operation.route.path:
            continue  # asks nothing but who may follow
        api, parts = asker(admin, attacker, operation), next(belongings.of(operation))
        answers = []
        begun = time.monotonic()
        if operation.endpoint.body and operation.method != "PATCH":
            for body in filled(operation.endpoint.body(), operation.body or {}, payload):
                answers.append(operation.ask(api, body=body, **parts))
        for name in operation.endpoint.query().fields if operation.endpoint.query else ():
            answers.append(operation.ask(api, query=f"?{name}={quote(payload, safe='')}", **parts))
        if parts:
            given = dict.fromkeys(parts, quote(payload, safe=""))
            assert operation.ask(api, **given).status in (400, 404), operation
        assert {answer.status for answer in answers} <= {200, 400, 403, 404, 409}, operation
        assert time.monotonic() - begun < SLOW * max(1, len(answers) / 10), operation
    assert database.scalar('SELECT count(*) FROM "user"') == users
    assert belongings.owner.api.get("/api/jobs?limit=1000").data
    attacker.api.post("/api/jobs/cancel", {}).data  # noqa: B018


@pytest.mark.parametrize("payload", PAYLOADS, ids=ascii)
def test_filters_find_only_what_is_called_so(admin: Api, payload: str) -> None:
    for name in ("submitter", "name"):
        answer = admin.get("/api/jobs", params={name: payload})
        assert answer.status == 400 or answer.data == []


@pytest.mark.parametrize("payload", PAYLOADS, ids=ascii)
def test_it_comes_back_as_it_was_given(alice: Person, unchanged: Unchanged, payload: str) -> None:
    made = alice.api.post("/api/tokens", {"name": payload}).data
    assert made["name"] == payload
    alice.api.delete(f"/api/tokens/{made['id']}").data  # noqa: B018
    job = alice.api.submit('printf "%s" "$V" "$@"', env={"V": payload}, args=[payload], wait=30)
    assert (job["args"], job["env"], job["stdout"]) == ([payload], {"V": payload}, payload * 2)
