"""A10: fields that only the service sets, or that do not exist: refused by name, and nothing is stored."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from tests.attacks.tools import OPERATIONS, Belongings, Operation
from tests.client import Api

Unchanged = Callable[[], AbstractContextManager[None]]

# Columns and settings of the service, what other services take, and what this one does not have.
FIELDS = [
    *("id", "uid", "gid", "user", "user_id", "tenant_id", "submitter", "owner", "is_admin", "admin", "token", "digest"),
    *("state", "status", "reason", "attempt", "fence", "runner", "created_at", "modified", "started_at", "return_code"),
    *("sandbox", "mounts", "privileged", "capabilities", "image", "command", "cwd", "path", "file", "host"),
    *("webhook", "callback_url", "url", "email", "schedule", "cron", "script", "artifacts", "files", "upload", "next"),
    *("__class__", "__proto__", "constructor", "$where", "_schema", "Code", "CODE", "code ", "", "a\r\nb", "é"),
]


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_fields_that_are_not_asked_for(
    admin: Api, belongings: Belongings, unchanged: Unchanged, operation: Operation
) -> None:
    """Asked as the administrator, so that nothing but the field can be the reason."""
    parts = next(belongings.of(operation))
    known = operation.endpoint.body().fields if operation.endpoint.body else {}
    unknown = [name for name in FIELDS if name not in known]
    with unchanged():
        for names in (unknown, unknown[:1]):
            answer = operation.ask(admin, body={**(operation.body or {}), **dict.fromkeys(names, 1)}, **parts)
            assert (answer.status, answer.errors) == (400, {name: ["Unknown field."] for name in names})


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_parameters_that_are_not_asked_for(
    admin: Api, belongings: Belongings, unchanged: Unchanged, operation: Operation
) -> None:
    parts = next(belongings.of(operation))
    known = operation.endpoint.query().fields if operation.endpoint.query else {}
    with unchanged():
        for name in ("user_id", "token", "next", "callback", "sort", "fields", "_method", "debug", "admin"):
            if name not in known:
                answer = operation.ask(admin, query=f"?{name}=1", **parts)
                assert (answer.status, list(answer.errors)) == (400, [name])


def nested(value: Any) -> list[tuple[str, ...]]:
    """The paths to all objects in a body, below the topmost."""
    found: list[tuple[Any, ...]] = []
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, dict | list):
            found += [(key, *path) for path in nested(inner)]
        if isinstance(inner, dict):
            found.append((key,))
    return found


@pytest.mark.parametrize("operation", [operation for operation in OPERATIONS if nested(operation.body or {})], ids=str)
def test_nor_in_objects_inside(admin: Api, belongings: Belongings, unchanged: Unchanged, operation: Operation) -> None:
    with unchanged():
        for path in nested(operation.body):
            body = operation.body
            inner: Any = body
            for key in path:
                inner = inner[key]
            if path[-1] not in ("env", "parameters"):  # whose names are the user's own
                inner["is_admin"] = True
                answer = operation.ask(admin, body=body, **next(belongings.of(operation)))
                assert answer.status == 400, answer.body
                assert "is_admin" in repr(answer.errors)
