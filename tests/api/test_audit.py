"""The audit log: every change and every refusal, by whom, from where, with which token; for administrators only."""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from baselayer import token as tokens
from shell_service.handlers import ROUTES
from tests.api.test_access import TABLE, WHO, ask, new_world
from tests.api.test_lists import pages
from tests.client import Answer, Api, Person, new_address, new_person
from tests.stack import Stack
from tests.waiting import eventually

ACTIONS = {
    (method, route.path): declared.action for route in ROUTES for method, (declared, _) in route.endpoints().items()
}
FIELDS = {
    "id", "at", "user_id", "username", "token_id", "address", "request_id", "action", "object", "outcome", "status",
    "detail",
}  # fmt: skip


def log(admin: Api, **filters: Any) -> list[dict[str, Any]]:
    """The newest entries that match, newest first."""
    entries: list[dict[str, Any]] = admin.get("/api/audit", params={"limit": 1000, **filters}).data
    return entries


def about(admin: Api, answer: Answer) -> list[dict[str, Any]]:
    """What the log says of the request with this answer."""
    return [entry for entry in log(admin) if entry["request_id"] == answer.headers["X-Request-Id"]]


def refusal(admin: Api, answer: Answer) -> dict[str, Any]:
    """What the log says of a request that was refused: soon after its answer."""
    (entry,) = eventually(lambda: about(admin, answer))
    return entry


def done(admin: Api, answer: Answer) -> dict[str, Any]:
    """What the log says of a request that succeeded: at once."""
    assert answer.status == 200, answer.body
    (entry,) = about(admin, answer)
    assert entry.keys() == FIELDS
    assert (entry["outcome"], entry["status"]) == ("ok", 200)
    return entry


def told(entry: dict[str, Any]) -> tuple[Any, ...]:
    """What was done, to what, and what more there is to say."""
    return entry["action"], entry["object"], entry["detail"]


@pytest.fixture(scope="module", autouse=True)
def flood(stack: Stack) -> tuple[str, int]:
    """Somebody has guessed more tokens than he may: his address, and how many of the guesses were refused for that."""
    address, most = new_address(), int(stack.settings.access.failures_per_minute)
    with Api(stack.base_url, address=address) as api:
        return address, [api.get("/api/user").status for _ in range(2 * most)].count(429)


def test_every_change_says_what_it_is() -> None:
    """A route that changes something and does not say what would be missing from the log."""
    for (method, path), action in ACTIONS.items():
        if method == "GET":
            assert action is None, path
        else:
            assert action and re.fullmatch(r"[a-z]+\.[a-z]+", action), (method, path)


def test_it_tells_of_every_change_and_refusal_and_of_nothing_else(admin: Api, stack: Stack) -> None:
    world = new_world(admin)
    # Not so many by one caller, as there are more refusals than are told of one by one.
    addresses = [new_address() for _ in range(3)]
    several = {
        "nobody": [Api(stack.base_url, address=address) for address in addresses],
        "wrong scope": [new_person(admin, scopes=["secrets:use"]).api for _ in range(3)],
        "other": [new_person(admin).api for _ in range(3)],
    }
    expected: dict[str, tuple[Any, ...]] = {}
    silent: set[str] = set()
    with contextlib.ExitStack() as closing:
        for stranger in several["nobody"]:
            closing.enter_context(stranger)
        for row, (method, path, where, body, statuses) in enumerate(TABLE):
            for who, status in zip(WHO, statuses, strict=True):
                api = several[who][row % 3] if who in several else world.callers[who]
                answer = ask(api, method, world.fill(where), world.fill_body(body))
                assert answer.status == status, (method, path, who, answer.body)
                number = answer.headers["X-Request-Id"]
                if status == 400 or (status == 200 and method == "GET"):
                    silent.add(number)
                    continue
                if status == 200:
                    world.renew()
                nobody = {"id": None, "username": None, "token": {"id": None}}
                me = nobody if who == "nobody" else api.get("/api/user").data
                expected[number] = (
                    me["id"], me["username"], me["token"]["id"], addresses[row % 3] if who == "nobody" else "127.0.0.1",
                    ACTIONS[method, path] or "read", "ok" if status == 200 else answer.code, status,
                )  # fmt: skip
    names = ("user_id", "username", "token_id", "address", "action", "outcome", "status")

    def entries() -> list[dict[str, Any]]:
        return [entry for page in pages(admin, "/api/audit?limit=1000") for entry in page]

    def found() -> dict[str, tuple[Any, ...]]:
        return {entry["request_id"]: tuple(entry[name] for name in names) for entry in entries()}

    eventually(lambda: found().keys() >= expected.keys())
    assert {number: entry for number, entry in found().items() if number in expected} == expected
    assert not found().keys() & silent
    numbers = [entry["request_id"] for entry in entries() if entry["request_id"] in expected]
    assert len(numbers) == len(expected)


def test_jobs(admin: Api, alice: Api) -> None:
    me = alice.get("/api/user").data
    one = alice.post("/api/jobs", {"code": "true", "name": "one", "delay": 3600, "env": {"KEY": "hidden"}})
    entry = done(admin, one)
    assert told(entry) == ("job.submit", one.data["id"], {})
    assert (entry["user_id"], entry["username"], entry["token_id"]) == (me["id"], me["username"], me["token"]["id"])
    assert one.data["created_at"] <= entry["at"]
    many = alice.post("/api/jobs/batch", {"jobs": [{"code": "true", "delay": 3600}] * 100})
    ids = [job["id"] for job in many.data]
    assert told(done(admin, many)) == ("job.submit", ids[0], {"jobs": 100, "last": ids[-1]})
    again = alice.post(f"/api/jobs/{one.data['id']}/rerun")
    assert told(done(admin, again)) == ("job.rerun", one.data["id"], {"job": again.data["id"]})
    for _ in range(2):  # the second time it has ended: that he wanted it is said all the same
        cancelled = alice.post(f"/api/jobs/{ids[0]}/cancel")
        assert told(done(admin, cancelled)) == ("job.cancel", ids[0], {})
    since = "2020-01-01T00:00:00Z"
    swept = alice.post("/api/jobs/cancel", {"name": "job", "created_after": since})
    assert swept.data == {"cancelled": 99}
    name, what, detail = told(done(admin, swept))
    assert (name, what, detail.pop("created_after")[:19], detail) == ("job.cancel", None, since[:19], {"name": "job"})
    rest = alice.post("/api/jobs/cancel", {})
    assert told(done(admin, rest)) == ("job.cancel", None, {"submitter": me["username"]})
    assert told(done(admin, alice.post("/api/jobs/cancel", {"name": "none"}))) == ("job.cancel", None, {"name": "none"})


def test_a_repeat_that_stores_nothing_is_told_once(admin: Api, alice: Api) -> None:
    key = {"Idempotency-Key": uuid.uuid4().hex}
    first, second = (alice.post("/api/jobs", {"code": "true"}, headers=key) for _ in range(2))
    assert first.data["id"] == second.data["id"]
    assert told(done(admin, first)) == ("job.submit", first.data["id"], {})
    assert about(admin, second) == []
    other = alice.post("/api/jobs", {"code": "false"}, headers=key)
    assert refusal(admin, other)["outcome"] == "idempotency_mismatch"


def test_tokens(admin: Api, alice: Api) -> None:
    name = alice.get("/api/user").data["username"]
    made = alice.post("/api/tokens", {"name": "mine", "scopes": ["jobs:read"], "expires_in": 60})
    number = str(made.data["id"])
    detail = {"username": name, "scopes": ["jobs:read"], "expires_at": made.data["expires_at"]}
    assert told(done(admin, made)) == ("token.create", number, detail)
    rotated = alice.post(f"/api/tokens/{number}/rotate", {"overlap": 9})
    detail = {"username": name, "token": rotated.data["id"], "overlap": 9}
    assert told(done(admin, rotated)) == ("token.rotate", number, detail)
    revoked = admin.delete(f"/api/tokens/{number}")
    entry = done(admin, revoked)
    assert told(entry) == ("token.revoke", number, {"username": name})
    assert entry["username"] == "admin"


def test_users(admin: Api) -> None:
    name = f"new{uuid.uuid4().hex}"
    made = admin.post("/api/users", {"username": name, "limits": {"max_running": 3}})
    assert told(done(admin, made)) == ("user.create", name, {"role": "user", "limits": {"max_running": 3}})
    change = {"role": "admin", "limits": {"max_queued": None, "jobs_per_minute": 7}}
    assert told(done(admin, admin.patch(f"/api/users/{name}", change))) == ("user.change", name, change)
    stopped = admin.patch(f"/api/users/{name}", {"active": False})
    assert told(done(admin, stopped)) == ("user.change", name, {"active": False})
    taken = admin.post("/api/users", {"username": name})
    assert told(refusal(admin, taken)) == ("user.create", None, {"method": "POST", "path": "/api/users"})
    assert [entry["action"] for entry in log(admin, object=name)] == ["user.change", "user.change", "user.create"]


def test_limits_that_were_met(admin: Api, person: Callable[..., Person]) -> None:
    full = person(max_queued=0)
    answer = full.api.post("/api/jobs", {"code": "true"})
    assert answer.status in (400, 429)
    full = person(max_queued=1)
    full.api.submit(delay=3600)
    entry = refusal(admin, full.api.post("/api/jobs", {"code": "true"}))
    assert (entry["username"], entry["outcome"], entry["status"]) == (full.username, "limit_reached", 429)


def test_what_is_not_valid_is_no_refusal(admin: Api, alice: Api) -> None:
    answers = [alice.post("/api/jobs", {"code": ""}), alice.get("/api/jobs?limit=0"), alice.delete("/api/jobs")]
    assert [answer.status for answer in answers] == [400, 400, 405]
    refusal(admin, alice.get("/api/users"))  # later than those, which would be there by now
    assert [entry for answer in answers for entry in about(admin, answer)] == []


@pytest.mark.parametrize("header", ["X-Real-IP", "X-Forwarded-For", "Forwarded", "X-Client-IP"])
def test_nobody_says_himself_where_he_comes_from(stack: Stack, admin: Api, alice: Api, header: str) -> None:
    address, headers = new_address(), {header: "203.0.113.9", "X-Request-Id": "mine"}
    with Api(stack.base_url, alice.token, address=address) as api:
        entry = done(admin, api.post("/api/jobs", {"code": "true"}, headers=headers))
        assert (entry["address"], len(entry["request_id"])) == (address, 32)
        entry = refusal(admin, api.get("/api/users", headers=headers))
        assert (entry["address"], len(entry["request_id"])) == (address, 32)


def test_what_strangers_send_is_short_and_holds_no_token(
    stack: Stack, admin: Api, alice: Api, workers: list[Api]
) -> None:
    known, guess = alice.token, tokens.mint()
    odd = "<img src=x onerror=alert(1)>\r\nINFO \u202e'\"\\;--"
    answers = [
        alice.delete(f"/api/tokens/{known}"),
        alice.get(f"/api/jobs/{known}/stdout"),
        alice.get(f"/api/jobs/job{guess}"),
        alice.get("/api/users", params={"cursor": known}),
        workers[0].get("/api/jobs/" + "x" * 5000, token=known),
        workers[0].get("/api/jobs/%00%01", token=known),
        alice.get("/api/users/" + quote(odd, safe="")),
    ]
    assert [answer.status for answer in answers] == [404, 404, 404, 403, 404, 404, 403]
    with Api(stack.base_url, guess, address=new_address()) as stranger:
        assert stranger.get("/api/user").status == 401
        refused = stranger.get(f"/api/jobs/{guess}")
    eventually(lambda: about(admin, refused))
    eventually(lambda: about(admin, answers[-1]))
    entries = log(admin)
    written = json.dumps(entries)
    for text in (known, guess):
        assert text not in written and text[4:30] not in written
    assert odd in {entry["object"] for entry in entries}
    assert "\ufffd\x01" in {entry["object"] for entry in entries}
    assert max(len(entry["object"] or "") for entry in entries) == 200
    assert max(len(json.dumps(entry)) for entry in entries) < 2500
    for name in ("app_00", "app_01"):
        assert known[4:30] not in stack.log(name) and guess[4:30] not in stack.log(name)


def test_filters(admin: Api, person: Callable[..., Person]) -> None:
    someone = person()
    job = someone.api.submit(delay=3600)["id"]
    assert someone.api.post(f"/api/jobs/{job}/cancel").status == 200
    assert someone.api.get("/api/users").status == 403
    made = someone.api.post("/api/tokens", {"name": "x"}).data

    def actions(**filters: Any) -> list[str]:
        return [entry["action"] for entry in log(admin, **filters)]

    mine = eventually(lambda: len(found := log(admin, user=someone.username)) == 4 and found)
    assert [entry["id"] for entry in mine] == [entry["id"] for entry in sorted(mine, key=lambda e: e["at"])][::-1]
    assert actions(object=job) == ["job.cancel", "job.submit"]
    assert actions(object=job, action="job.submit") == ["job.submit"]
    assert actions(object=str(made["id"]), action="token.create") == ["token.create"]
    assert actions(user=someone.username, outcome="not_allowed") == ["read"]
    assert set(actions(user=someone.username, outcome="ok")) == {"job.cancel", "job.submit", "token.create"}
    assert actions(user=someone.username, action="job.submit", outcome="ok") == ["job.submit"]
    assert actions(user=someone.username.upper()) == actions(object="%") == actions(action="JOB.SUBMIT") == []
    for name, value in (
        ("action", "job.submit"),
        ("action", "token.create"),
        ("outcome", "ok"),
        ("outcome", "not_allowed"),
    ):
        found = log(admin, **{name: value})
        assert found and {entry[name] for entry in found} == {value}
        assert found[0]["id"] in {entry["id"] for entry in log(admin, **{name: value}, limit=1)}
    newest, *_, oldest = mine
    between = {"after": oldest["at"], "before": newest["at"]}
    assert log(admin, user=someone.username, **between) == mine[1:3]
    assert {entry["id"] for entry in log(admin, **between)} >= {entry["id"] for entry in mine[1:3]}
    assert all(oldest["at"] < entry["at"] < newest["at"] for entry in log(admin, **between))
    assert log(admin, before="1990-01-01T00:00:00Z") == log(admin, after="9999-01-01T00:00:00Z") == []


def test_pages(admin: Api, alice: Api) -> None:
    name = alice.get("/api/user").data["username"]
    for _ in range(7):
        alice.submit(delay=3600)
    for query in (
        f"user={name}",
        f"user={name}&action=job.submit&outcome=ok",
        f"user={name}&after=2020-01-01T00:00:00Z",
    ):
        found = pages(admin, f"/api/audit?limit=3&{query}")
        assert [len(page) for page in found] == [3, 3, 1]
        assert [entry for page in found for entry in page] == log(admin, user=name)
    first = admin.get("/api/audit?limit=3")
    second = admin.get(re.fullmatch(r'<(.+)>; rel="next"', first.headers["Link"])[1])  # type: ignore[index]
    everything = [entry["id"] for entry in log(admin)]
    here = everything.index(second.data[0]["id"])
    assert everything[here : here + 3] == [entry["id"] for entry in second.data]


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "cursor=x", "cursor=AAAA", "user=", "user=%00", "action=", "object=" + "x" * 201,
     "after=yesterday", "before=1", "status=403", "username=x", "user=a&user=b"],
)  # fmt: skip
def test_no_filters(admin: Api, query: str) -> None:
    answer = admin.get(f"/api/audit?{query}")
    assert (answer.status, answer.code) == (400, "invalid_request")


def test_a_cursor_that_is_made_up_finds_nothing_bad(admin: Api) -> None:
    for text in ("A" * 22, "_" * 21 + "w"):
        assert admin.get(f"/api/audit?limit=1&cursor={text}").status == 200


def test_it_takes_the_role_and_the_scope(admin: Api, person: Callable[..., Person]) -> None:
    narrow = admin.post("/api/tokens", {"name": "narrow", "scopes": ["users:admin"]}).data["token"]
    assert admin.using(narrow).get("/api/audit").status == 403
    auditor = admin.post("/api/tokens", {"name": "auditor", "scopes": ["audit:read"]}).data["token"]
    assert admin.using(auditor).get("/api/audit?limit=1").status == 200
    assert admin.using(auditor).get("/api/users").status == 403
    someone = person()
    assert someone.api.post("/api/tokens", {"name": "x", "scopes": ["audit:read"]}).status == 403
    assert "audit:read" not in someone.api.get("/api/user").data["scopes"]
    assert someone.api.get("/api/audit").status == 403


def test_of_too_many_guesses_the_number_is_told(admin: Api, stack: Stack, flood: tuple[str, int]) -> None:
    """At the end, as that takes some seconds."""
    address, most = flood

    def told() -> list[dict[str, Any]]:
        found = log(admin, outcome="not_authenticated") + log(admin, outcome="dropped")
        return [entry for entry in found if entry["address"] == address]

    eventually(lambda: sum(entry["detail"].get("count", 0) for entry in told()) == most)
    single = [entry for entry in told() if entry["outcome"] != "dropped"]
    assert {(entry["outcome"], entry["object"], entry["status"]) for entry in single} == {
        ("not_authenticated", None, 401)
    }
    assert len(single) + most == 2 * stack.settings.access.failures_per_minute
    assert {entry["action"] for entry in told()} == {"read", "refusals"}
