"""A40: numbers that are none, too large, too small, or of another type, in every field and parameter that is one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import quote

import pytest
from marshmallow import Schema, fields

from baselayer.fields import Number, Size, Whole
from tests.attacks.tools import ADMIN_SCOPES, OPERATIONS, Belongings, Operation
from tests.client import Api, Person

Unchanged = Callable[[], AbstractContextManager[None]]

BAD = [-1e308, 1e308, -(2**63), 2**63, 2**64, 10**30, "1", "", " 1", "1e3", "0x1", True, False, [], [1], {}, "NaN"]
BAD += ["256 MiB", "1XB", "-1KiB", "1_0", "\u0661", "9" * 400]
TEXTS = ["-1e308", "1e308", str(2**63), str(10**30), "x", "", " 1", "0x1", "true", "1_0", "+1", "1,0", "NaN", "inf"]
TEXTS += ["\u0661", "\u00b2", "1;1", "null", "1" * 400]


def filled(schema: Schema, base: dict[str, Any], value: Any) -> tuple[dict[str, Any], set[str]]:
    """`base` with the value in the place of each number, at any depth; and the names of these fields."""
    body, names = dict(base), set()
    for name, item in schema.fields.items():
        if isinstance(item, Number | Whole | Size):
            is_good = (value is None and item.allow_none) or (isinstance(item, Size) and value == "1")
            if not is_good:
                body[name] = value
                names.add(name)
        elif isinstance(item, fields.Nested):
            body[name], inner = filled(item.schema, base.get(name) or {}, value)
            names |= inner
        elif isinstance(item, fields.List) and isinstance(item.inner, fields.Nested):
            first, inner = filled(item.inner.schema, (base.get(name) or [{}])[0], value)
            body[name] = [first]
            names |= inner
    return body, names


WITH_NUMBERS = [
    operation
    for operation in OPERATIONS
    if operation.endpoint.body and filled(operation.endpoint.body(), operation.body or {}, 0)[1]
]


def named(errors: Any) -> set[str]:
    """The fields that errors are about, at any depth."""
    if not isinstance(errors, dict):
        return set()
    return {str(name) for name, inner in errors.items() if isinstance(inner, list)}.union(*map(named, errors.values()))


@pytest.mark.parametrize("operation", WITH_NUMBERS, ids=str)
def test_in_bodies(
    admin: Api, alice: Person, belongings: Belongings, unchanged: Unchanged, operation: Operation
) -> None:
    """All of them at once; each is refused by its name, and nothing is stored."""
    api = admin if operation.scope in ADMIN_SCOPES else alice.api
    assert operation.endpoint.body
    with unchanged():
        for value in [*BAD, None]:
            body, names = filled(operation.endpoint.body(), operation.body or {}, value)
            if names:
                answer = operation.ask(api, body=body, **next(belongings.of(operation)))
                assert answer.status == 400, (value, answer.body)
                assert named(answer.errors) >= names, value


def test_in_parameters(admin: Api, belongings: Belongings, unchanged: Unchanged) -> None:
    with unchanged():
        for operation in OPERATIONS:
            query = operation.endpoint.query().fields if operation.endpoint.query else {}
            for name, item in query.items():
                if isinstance(item, Number | Whole):
                    for text in TEXTS:
                        target = f"?{name}={quote(text)}"
                        answer = operation.ask(admin, query=target, **next(belongings.of(operation)))
                        assert (answer.status, list(answer.errors)) == (400, [name]), (operation, target)


def test_a_very_short_time_is_a_time(alice: Person) -> None:
    job = alice.api.submit("sleep 5", timeout=1e-9, wait=30)
    assert job["status"] == "TIMEOUT"
