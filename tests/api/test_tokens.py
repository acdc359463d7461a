"""Tokens and users: made, listed, rotated, revoked, expired, deactivated, and what each may pass on."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest

from baselayer import token as tokens
from shell_service.scopes import MEANINGS, SCOPES
from tests.api.conftest import MAX_TOKENS
from tests.client import Answer, Api, Person, new_person
from tests.stack import Stack
from tests.waiting import eventually

RECORD = {"id", "name", "username", "scopes", "prefix", "created_at", "expires_at", "last_used_at"}
USER = {"id", "username", "role", "active", "created_at", "modified", "limits"}


def make(api: Api, **fields: Any) -> Answer:
    return api.post("/api/tokens", {"name": "made", **fields})


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def stops_at_once(workers: list[Api], token: str, act: Callable[[], Any]) -> None:
    """Assert that `act` stops the token on every worker within a second, and that nothing else had."""
    for worker in workers:
        assert worker.get("/api/user", token=token).status == 200
    act()
    begun = time.monotonic()
    eventually(lambda: {worker.get("/api/user", token=token).status for worker in workers} == {401}, seconds=2)
    assert time.monotonic() - begun < 1
    for worker in workers:
        assert worker.post("/api/jobs", {"code": "true"}, token=token).status == 401


# -- tokens ----------------------------------------------------------------------------------------------------------


def test_a_token_is_shown_once(alice: Api, stack: Stack) -> None:
    made = make(alice, name="laptop").data
    assert made.keys() == RECORD | {"token"}
    assert tokens.well_formed(made["token"])
    assert made["prefix"] == made["token"][:10]
    assert (made["name"], made["scopes"], made["expires_at"], made["last_used_at"]) == ("laptop", ["*"], None, None)
    raw = alice.client.get("/api/tokens", headers=alice.headers()).text
    assert made["token"] not in raw
    (listed,) = [token for token in alice.get("/api/tokens").data if token["id"] == made["id"]]
    assert listed == {name: made[name] for name in RECORD}
    assert alice.get("/api/user", token=made["token"]).data["token"]["id"] == made["id"]


def test_no_log_holds_a_token(alice: Api, stack: Stack) -> None:
    made = make(alice).data["token"]
    alice.get("/api/user", token=made).data  # noqa: B018
    alice.get("/api/user", token=made[:-1] + "x")
    for log in stack.settings.log_dir.iterdir():
        text = log.read_text(errors="replace")
        assert made[:20] not in text, log.name
        assert alice.token not in text, log.name


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": ""}, "name"), ({"name": "x" * 101}, "name"), ({"name": 5}, "name"), ({"name": "a\0"}, "name"),
        ({"scopes": []}, "scopes"), ({"scopes": ["jobs"]}, "scopes"), ({"scopes": "jobs:read"}, "scopes"),
        ({"scopes": [1]}, "scopes"), ({"scopes": ["jobs:read"] * (len(MEANINGS) + 1)}, "scopes"),
        ({"scopes": ["jobs:read\0"]}, "scopes"),
        ({"expires_in": 0}, "expires_in"), ({"expires_in": -1}, "expires_in"), ({"expires_in": "60"}, "expires_in"),
        ({"expires_in": 1.5}, "expires_in"), ({"expires_in": 2**63}, "expires_in"),
        ({"expires_in": True}, "expires_in"),
        ({"username": ""}, "username"), ({"username": 1}, "username"), ({"username": "\0"}, "username"),
        ({"token": "shs_x"}, "token"), ({"user_id": 1}, "user_id"), ({"prefix": "x"}, "prefix"),
    ],
)  # fmt: skip
def test_no_tokens(alice: Api, fields: dict[str, Any], field: str) -> None:
    before = alice.get("/api/tokens").data
    answer = make(alice, **fields)
    assert (answer.status, list(answer.errors)) == (400, [field])
    assert [token["id"] for token in alice.get("/api/tokens").data] == [token["id"] for token in before]


def test_a_token_passes_on_no_more_than_it_has(alice: Api) -> None:
    narrow = alice.using(make(alice, scopes=["tokens:write", "tokens:read", "jobs:read"]).data["token"])
    assert make(narrow, scopes=["jobs:read"]).data["scopes"] == ["jobs:read"]
    assert make(narrow).data["scopes"] == ["jobs:read", "tokens:read", "tokens:write"]
    for scopes in (["jobs:write"], ["jobs:read", "users:admin"], ["*"]):
        answer = make(narrow, scopes=scopes)
        assert (answer.status, answer.code) == (403, "not_allowed")
    assert "jobs:write" in make(narrow, scopes=["jobs:write"]).body["message"]
    assert make(alice, scopes=["users:admin"]).status == 403
    assert make(alice, username="admin").status == 403


def test_a_list_of_all_scopes_is_less_than_every_scope(alice: Api) -> None:
    """Its owner may be given more one day."""
    everything = sorted(SCOPES.of_role("user"))
    listed = alice.using(make(alice, scopes=everything).data["token"])
    assert make(listed).data["scopes"] == everything
    assert make(listed, scopes=["*"]).status == 403
    unlimited = make(alice, scopes=["*"]).data
    assert listed.post(f"/api/tokens/{unlimited['id']}/rotate").status == 403
    assert alice.post(f"/api/tokens/{unlimited['id']}/rotate").status == 200


def test_every_scope_can_be_given_and_is_what_it_says(alice: Api, admin: Api) -> None:
    for scope in MEANINGS:
        for api, role in ((alice, "user"), (admin, "admin")):
            answer = make(api, scopes=[scope])
            if role == "user" and scope in SCOPES.of_role("admin") - SCOPES.of_role("user"):
                assert answer.status == 403
                continue
            seen = api.get("/api/user", token=answer.data["token"]).data
            assert set(seen["scopes"]) == SCOPES.effective(role, [scope])
            assert seen["token"]["scopes"] == [scope]


def test_a_token_lives_no_longer_than_its_maker(alice: Api) -> None:
    parent = make(alice, expires_in=1000).data
    child = alice.using(parent["token"])
    for fields in ({}, {"expires_in": 100_000}, {"expires_in": 1000}):
        assert make(child, **fields).data["expires_at"] <= parent["expires_at"]
    shorter = make(child, expires_in=10).data
    assert shorter["expires_at"] < parent["expires_at"]


def test_no_rotation_outlives_its_maker(alice: Api) -> None:
    forever = make(alice).data
    brief = alice.using(make(alice, expires_in=1000).data["token"])
    answer = brief.post(f"/api/tokens/{forever['id']}/rotate", {})
    assert (answer.status, answer.code) == (403, "not_allowed")
    assert alice.get("/api/user", token=forever["token"]).status == 200
    own = brief.get("/api/user").data["token"]
    rotated = brief.post(f"/api/tokens/{own['id']}/rotate", {}).data
    assert rotated["expires_at"] == own["expires_at"]


def test_an_expired_token_stops_on_every_worker(alice: Api, workers: list[Api]) -> None:
    made = make(alice, expires_in=1).data
    assert at(made["expires_at"]) - at(made["created_at"]) <= timedelta(seconds=1.1)
    eventually(lambda: {worker.get("/api/user", token=made["token"]).status for worker in workers} == {401}, seconds=2)


def test_a_revoked_token_stops_on_every_worker(alice: Api, workers: list[Api]) -> None:
    made = make(alice).data
    stops_at_once(workers, made["token"], lambda: alice.delete(f"/api/tokens/{made['id']}").data)
    assert made["id"] not in {token["id"] for token in alice.get("/api/tokens").data}
    assert alice.delete(f"/api/tokens/{made['id']}").status == 404


def test_a_token_can_revoke_itself(alice: Api) -> None:
    made = make(alice).data
    assert alice.delete(f"/api/tokens/{made['id']}", token=made["token"]).data == {}
    eventually(lambda: alice.get("/api/user", token=made["token"]).status == 401, seconds=1)


def test_rotation_replaces_at_once(alice: Api, workers: list[Api]) -> None:
    old = make(alice, name="n", scopes=["jobs:read"], expires_in=1000).data
    new: dict[str, Any] = {}
    stops_at_once(workers, old["token"], lambda: new.update(alice.post(f"/api/tokens/{old['id']}/rotate", {}).data))
    assert new.keys() == RECORD | {"token"}
    assert new["id"] != old["id"] and new["token"] != old["token"]
    assert [new[name] for name in ("name", "scopes", "expires_at")] == [
        old[name] for name in ("name", "scopes", "expires_at")
    ]
    assert alice.get("/api/user", token=new["token"]).status == 200


def test_rotation_with_an_overlap(alice: Api, workers: list[Api]) -> None:
    old = make(alice).data
    new = alice.post(f"/api/tokens/{old['id']}/rotate", {"overlap": 2}).data
    for token in (old, new):
        assert {worker.get("/api/user", token=token["token"]).status for worker in workers} == {200}
    assert new["expires_at"] is None
    eventually(lambda: {worker.get("/api/user", token=old["token"]).status for worker in workers} == {401}, seconds=3.5)
    assert alice.get("/api/user", token=new["token"]).status == 200
    soon = make(alice, expires_in=2).data  # an overlap prolongs nothing
    alice.post(f"/api/tokens/{soon['id']}/rotate", {"overlap": 1000}).data  # noqa: B018
    (listed,) = [token for token in alice.get("/api/tokens").data if token["id"] == soon["id"]]
    assert listed["expires_at"] == soon["expires_at"]


@pytest.mark.parametrize("overlap", [-1, 7 * 86400 + 1, "1", True, 1.5, None])
def test_no_overlaps(alice: Api, overlap: Any) -> None:
    made = make(alice).data
    answer = alice.post(f"/api/tokens/{made['id']}/rotate", {"overlap": overlap})
    assert (answer.status, list(answer.errors)) == (400, ["overlap"])


def test_one_cannot_rotate_what_is_more_than_oneself(alice: Api) -> None:
    full = make(alice).data
    narrow = alice.using(make(alice, scopes=["tokens:write"]).data["token"])
    assert narrow.post(f"/api/tokens/{full['id']}/rotate", {}).status == 403
    assert alice.get("/api/user", token=full["token"]).status == 200


@pytest.mark.parametrize("token_id", ["0", "-1", "x", "99999999999", "1.5", "١", "1%20", "%00", "999999999"])
def test_no_token_ids(alice: Api, token_id: str) -> None:
    assert alice.delete(f"/api/tokens/{token_id}").status in (400, 404)
    assert alice.post(f"/api/tokens/{token_id}/rotate", {}).status in (400, 404)


def test_when_it_was_last_used(alice: Api) -> None:
    made = make(alice).data
    alice.get("/api/user", token=made["token"]).data  # noqa: B018

    def last_used() -> str | None:
        (listed,) = [token for token in alice.get("/api/tokens").data if token["id"] == made["id"]]
        return listed["last_used_at"]

    used = eventually(last_used, seconds=10)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", used)
    assert at(used) >= at(made["created_at"])


def test_nobody_has_more_tokens_than_are_allowed(alice: Api, bob: Api) -> None:
    had = len(alice.get("/api/tokens").data)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: make(alice), range(MAX_TOKENS - had + 8)))
    assert [answer.status for answer in made].count(409) == 8
    assert len(alice.get("/api/tokens?limit=1000").data) == MAX_TOKENS
    answer = make(alice)
    assert answer.code == "conflict" and f"{MAX_TOKENS} tokens" in answer.body["message"]
    one = next(answer.data["id"] for answer in made if answer.status == 200)
    assert alice.post(f"/api/tokens/{one}/rotate", {"overlap": 60}).status == 409
    assert make(bob).status == 200
    assert alice.post(f"/api/tokens/{one}/rotate", {}).status == 200


def test_pages_of_tokens(alice: Api) -> None:
    ids = [make(alice).data["id"] for _ in range(5)]
    answer = alice.get("/api/tokens?limit=3")
    assert [token["id"] for token in answer.data] == ids[:1:-1]
    address = re.fullmatch(r'<(.+)>; rel="next"', answer.headers["Link"])[1]  # type: ignore[index]
    rest = alice.get(address)
    assert [token["id"] for token in rest.data][:2] == [ids[1], ids[0]]
    assert "Link" not in rest.headers
    assert alice.get("/api/tokens?cursor=AAAA").status == 400


# -- users -----------------------------------------------------------------------------------------------------------


def test_who_am_i(alice: Api) -> None:
    me = alice.get("/api/user").data
    assert me.keys() == USER | {"scopes", "token", "running", "queued"}
    assert (me["role"], me["active"], me["running"], me["queued"]) == ("user", True, 0, 0)
    assert set(me["scopes"]) == SCOPES.of_role("user")
    assert me["token"].keys() == RECORD
    alice.submit(delay=3600)
    running = alice.submit("sleep 30")
    eventually(lambda: alice.get("/api/user").data["running"] == 1)
    assert alice.get("/api/user").data["queued"] == 1
    alice.post(f"/api/jobs/{running['id']}/cancel").data  # noqa: B018


def test_an_administrator_makes_a_user(admin: Api, stack: Stack) -> None:
    made = admin.post("/api/users", {"username": "Carol.x-1", "limits": {"max_running": 3}}).data
    assert made.keys() == USER
    assert (made["username"], made["role"], made["active"]) == ("Carol.x-1", "user", True)
    assert (made["limits"]["max_running"], made["limits"]["max_queued"]) == (3, stack.settings.users.max_queued)
    assert made["limits"]["jobs_per_minute"] == stack.settings.users.jobs_per_minute
    assert admin.get("/api/users/Carol.x-1").data == made
    assert made in admin.get("/api/users?limit=5").data
    again = admin.post("/api/users", {"username": "Carol.x-1"})
    assert (again.status, again.code, list(again.errors)) == (409, "conflict", ["username"])
    token = admin.post("/api/tokens", {"name": "first", "username": "Carol.x-1"}).data
    assert token["username"] == "Carol.x-1"
    assert admin.get("/api/user", token=token["token"]).data["username"] == "Carol.x-1"
    assert admin.post("/api/tokens", {"name": "x", "username": "nobody-of-this-name"}).status == 404


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "username"), ({"username": ""}, "username"), ({"username": "a b"}, "username"),
        ({"username": "ü"}, "username"),
        ({"username": "x" * 101}, "username"), ({"username": 5}, "username"), ({"username": "a/b"}, "username"),
        ({"username": "a\n"}, "username"), ({"username": "<img>"}, "username"), ({"username": "a\0"}, "username"),
        ({"username": "ok", "role": "root"}, "role"), ({"username": "ok", "role": None}, "role"),
        ({"username": "ok", "limits": {"max_running": -1}}, "limits"),
        ({"username": "ok", "limits": {"x": 1}}, "limits"),
        ({"username": "ok", "limits": {"max_running": "5"}}, "limits"), ({"username": "ok", "limits": None}, "limits"),
        ({"username": "ok", "limits": {"max_running": True}}, "limits"), ({"username": "ok", "limits": []}, "limits"),
        ({"username": "ok", "id": 1}, "id"), ({"username": "ok", "active": False}, "active"),
    ],
)  # fmt: skip
def test_no_users(admin: Api, body: dict[str, Any], field: str) -> None:
    answer = admin.post("/api/users", body)
    assert (answer.status, list(answer.errors)) == (400, [field])
    assert admin.get("/api/users/ok").status == 404


def test_limits_are_changed_one_by_one(admin: Api, alice: Api, stack: Stack) -> None:
    username = alice.get("/api/user").data["username"]

    def patch(**limits: int | None) -> dict[str, Any]:
        return admin.patch(f"/api/users/{username}", {"limits": limits}).data["limits"]

    defaults = admin.get(f"/api/users/{username}").data["limits"]
    assert patch(max_running=7) == {**defaults, "max_running": 7}
    assert patch(max_queued=9) == {**defaults, "max_running": 7, "max_queued": 9}
    assert alice.get("/api/user").data["limits"] == {**defaults, "max_running": 7, "max_queued": 9}
    assert patch(max_running=None) == {**defaults, "max_queued": 9}
    assert patch() == {**defaults, "max_queued": 9}
    before = admin.get(f"/api/users/{username}").data
    assert admin.patch(f"/api/users/{username}", {}).data["limits"] == before["limits"]


@pytest.mark.parametrize(
    "body",
    [{"username": "x"}, {"active": 0}, {"active": None}, {"role": "x"}, {"limits": {"max_queued": 10**8}}, {"id": 1}],
)
def test_no_changes(admin: Api, alice: Api, body: dict[str, Any]) -> None:
    before = alice.get("/api/user").data
    assert admin.patch(f"/api/users/{before['username']}", body).status == 400
    assert alice.get("/api/user").data["limits"] == before["limits"]


@pytest.mark.parametrize("username", ["nobody-of-this-name", "%20", "a%00", "%ff", "..", "a%2fb", "x" * 5000])
def test_users_that_are_not_there(admin: Api, username: str) -> None:
    assert admin.get(f"/api/users/{username}").status in (400, 404)
    assert admin.patch(f"/api/users/{username}", {"active": False}).status in (400, 404, 405)


def test_an_administrator_cannot_lock_himself_out(admin: Api) -> None:
    for change in ({"active": False}, {"role": "user"}):
        assert admin.patch("/api/users/admin", change).status == 409
    assert admin.patch("/api/users/admin", {"active": True, "role": "admin"}).data["active"]


def test_deactivation_stops_everything_at_once(admin: Api, workers: list[Api], person: Callable[..., Person]) -> None:
    gone = person(max_running=1)
    running = gone.api.submit("trap '' TERM; echo ready; sleep 60")
    eventually(lambda: gone.api.job(running["id"])["stdout"])
    jobs = [running, gone.api.submit("true"), gone.api.submit(delay=3600)]
    second = make(gone.api).data["token"]
    stops_at_once(workers, gone.token, lambda: admin.patch(f"/api/users/{gone.username}", {"active": False}).data)
    assert {worker.get("/api/user", token=second).status for worker in workers} == {401}
    for job in jobs:
        final = eventually(lambda job=job: (seen := admin.job(job["id"]))["finished_at"] and seen)
        assert (final["status"], final["reason"]) == ("CANCELLED", "cancelled by admin")
    assert admin.post("/api/tokens", {"name": "x", "username": gone.username}).status in (200, 409)
    admin.patch(f"/api/users/{gone.username}", {"active": True}).data  # noqa: B018
    assert gone.api.submit("true", wait=30)["status"] == "COMPLETED"
    assert [admin.job(job["id"])["status"] for job in jobs] == ["CANCELLED"] * 3


def test_pages_of_users(admin: Api) -> None:
    people = [new_person(admin).username for _ in range(4)]
    answer = admin.get("/api/users?limit=2")
    assert [user["username"] for user in answer.data] == [people[3], people[2]]
    address = re.fullmatch(r'<(.+)>; rel="next"', answer.headers["Link"])[1]  # type: ignore[index]
    assert [user["username"] for user in admin.get(address).data] == [people[1], people[0]]
