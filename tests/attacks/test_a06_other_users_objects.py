"""A6: user B asks for everything of user A's, by every method of every route that names a thing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from baselayer.handler import PUBLIC
from tests.attacks.tools import ADMIN_SCOPES, OPERATIONS, SCOPED, Belongings, Operation, nothing
from tests.client import Api, Person

Unchanged = Callable[[], AbstractContextManager[None]]

# A PUT of a secret names what the caller has, or will have: see below.
NAMING = [
    operation
    for operation in OPERATIONS
    if operation.parts and (operation.method, operation.route.path) != ("PUT", "/api/secrets/{name}")
]


@pytest.mark.parametrize("operation", NAMING, ids=str)
def test_what_is_another_s_is_not_there(
    bob: Person, belongings: Belongings, unchanged: Unchanged, operation: Operation
) -> None:
    status = 403 if operation.scope in ADMIN_SCOPES else 404  # whatever it is asked about
    with unchanged():
        for parts in belongings.of(operation):
            answer = operation.ask(bob.api, **parts)
            unknown = operation.ask(bob.api, **nothing())
            assert answer.status == status, operation
            assert (answer.status, answer.body) == (unknown.status, unknown.body)
            assert answer.headers.keys() == unknown.headers.keys()


@pytest.mark.parametrize("operation", NAMING, ids=str)
def test_nor_by_head(bob: Person, belongings: Belongings, operation: Operation) -> None:
    for parts in belongings.of(operation):
        answer = bob.api("HEAD", operation.address(**parts))
        assert (answer.status in (403, 404, 405), answer.body) == (True, b"")


def test_its_owner_finds_it(alice: Person, belongings: Belongings) -> None:
    """What the other tests would say as well if nothing were ever found."""
    for operation in NAMING:
        if operation.method == "GET" and operation.scope not in ADMIN_SCOPES and "stream" not in operation.route.path:
            statuses = {operation.ask(alice.api, **parts).status for parts in belongings.of(operation)}
            # A job that has not begun has left nothing.
            assert statuses == {200} or ("path" in operation.parts and statuses == {200, 404}), operation


def test_what_names_nothing_tells_nothing_of_others(bob: Person, belongings: Belongings, stranger: Api) -> None:
    """Lists, figures, documents: to B, and to whoever has no token."""
    for operation in OPERATIONS:
        if operation.method == "GET" and not operation.parts:
            for api in (bob.api, stranger):
                if api is bob.api or operation.scope == PUBLIC:
                    shown = repr(operation.ask(api).body)
                    assert not [mark for mark in belongings.private if mark in shown], operation
    for query in (f"?submitter={belongings.owner.username}", "?name=private", "?limit=1000"):
        assert belongings.owner.username not in repr(bob.api.get(f"/api/jobs{query}").body)


def test_another_s_cursor_leads_to_one_s_own(alice: Person, bob: Person, belongings: Belongings) -> None:
    for path in ("/api/jobs", "/api/tokens"):
        link = alice.api.get(f"{path}?limit=1").headers["Link"]
        address = link[1 : link.index(">")]
        assert belongings.owner.username in repr(alice.api.get(address).body)
        assert belongings.owner.username not in repr(bob.api.get(address).body)


def test_what_is_put_is_one_s_own(bob: Person, alice: Person, belongings: Belongings) -> None:
    """Whatever others call so stays as it is, and jobs of each are given what is theirs."""
    (name,) = belongings.things["name"]
    bob.api.put(f"/api/secrets/{name}", {"value": "that of bob"}).data  # noqa: B018
    code = f'[ "$(cat /run/job/secrets/{name})" = "that of bob" ]'
    for person, status in ((bob, "COMPLETED"), (alice, "FAILED")):
        assert person.api.submit(code, secrets=[name], wait=30)["status"] == status
    assert bob.api.delete(f"/api/secrets/{name}").status == 200
    assert alice.api.get(f"/api/secrets/{name}").status == 200


def test_many_are_cancelled_of_one_s_own_only(bob: Person, belongings: Belongings, unchanged: Unchanged) -> None:
    with unchanged():
        for filters in ({}, {"submitter": belongings.owner.username}, {"name": "job"}, {"status": "PENDING"}):
            assert bob.api.post("/api/jobs/cancel", filters).data == {"cancelled": 0}


def test_an_administrator_s_token_without_the_scope_is_no_administrator_s(admin: Api, belongings: Belongings) -> None:
    """Tokens of others are for tokens that manage users, whoever owns them."""
    made = admin.post("/api/tokens", {"name": "narrow", "scopes": ["tokens:read", "tokens:write"]}).data
    narrow = admin.using(made["token"])
    for operation in NAMING:
        if operation.scope not in made["scopes"]:
            assert {operation.ask(narrow, **parts).status for parts in belongings.of(operation)} == {403}, operation
        elif "token_id" in operation.parts:
            assert {operation.ask(narrow, **parts).status for parts in belongings.of(operation)} == {404}, operation
    assert belongings.owner.username not in repr(narrow.get("/api/tokens?limit=1000").body)
    assert narrow.post("/api/tokens", {"name": "x", "username": belongings.owner.username}).status == 403


def test_scopes_are_looked_at_before_things(bob: Person, belongings: Belongings, admin: Api) -> None:
    """A token without the scope learns as little of what is there as one of somebody else."""
    made = bob.api.post("/api/tokens", {"name": "idle", "scopes": ["secrets:use"]}).data
    idle = bob.api.using(made["token"])
    for operation in SCOPED:
        if operation.parts:
            answers = [operation.ask(idle, **parts) for parts in [*belongings.of(operation), nothing()]]
            assert {answer.status for answer in answers} == {403}, operation
            assert len({repr(answer.body) for answer in answers}) == 1
