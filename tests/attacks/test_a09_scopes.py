"""A9: a token does what its scopes say and nothing else, and a user is no administrator whatever his tokens say."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from baselayer.access import EVERY_SCOPE
from shell_service.scopes import MEANINGS
from tests.attacks.tools import ADMIN_SCOPES, OPERATIONS, READ_ONLY, SCOPED, Belongings, Operation, nothing
from tests.client import Api, Person, new_person

Unchanged = Callable[[], AbstractContextManager[None]]


def limited(api: Api, scopes: list[str]) -> Api:
    return api.using(api.post("/api/tokens", {"name": "limited", "scopes": scopes}).data["token"])


@pytest.mark.parametrize("operation", SCOPED, ids=str)
def test_every_scope_but_the_one_is_not_enough(
    admin: Api, belongings: Belongings, unchanged: Unchanged, operation: Operation
) -> None:
    """An administrator's token that may do all the rest."""
    others = limited(admin, sorted(set(MEANINGS) - {operation.scope, EVERY_SCOPE}))
    with unchanged():
        for parts in [*belongings.of(operation), nothing()]:
            answer = operation.ask(others, **parts)
            assert (answer.status, answer.code) == (403, "not_allowed")
            assert operation.scope in answer.body["message"]


def test_a_token_to_read_writes_nothing(belongings: Belongings, unchanged: Unchanged) -> None:
    """A's own: it reads all of hers, and changes none of it."""
    reader = limited(belongings.owner.api, sorted(set(READ_ONLY) - ADMIN_SCOPES))
    writing = [operation for operation in OPERATIONS if operation.method != "GET"]
    assert writing
    with unchanged():
        for operation in writing:
            for parts in belongings.of(operation):
                answer = operation.ask(reader, **parts)
                assert (answer.status, answer.code) == (403, "not_allowed"), operation
    assert reader.get("/api/jobs").data


@pytest.mark.parametrize("role", ["user", "demoted"])
def test_a_user_does_nothing_of_an_administrator_s(
    admin: Api, belongings: Belongings, unchanged: Unchanged, role: str
) -> None:
    """With a token of every scope, and one that names the scope from when he was an administrator."""
    person: Person = new_person(admin, role="user" if role == "user" else "admin")
    apis = [person.api]
    if role == "demoted":
        apis.append(limited(person.api, sorted(ADMIN_SCOPES | {"jobs:read"})))
        admin.patch(f"/api/users/{person.username}", {"role": "user"}).data  # noqa: B018
    else:
        for scope in ADMIN_SCOPES:
            answer = person.api.post("/api/tokens", {"name": "x", "scopes": [scope]})
            assert (answer.status, answer.code) == (403, "not_allowed")
    with unchanged():
        for operation in OPERATIONS:
            if operation.scope in ADMIN_SCOPES:
                for api in apis:
                    for parts in belongings.of(operation):
                        assert operation.ask(api, **parts).status == 403, operation
        assert person.api.post("/api/tokens", {"name": "x", "username": "admin"}).status == 403
