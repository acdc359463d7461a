"""Schedules, from the API: made, seen, changed, paused, and really fired."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from tests.api.test_jobs import at, ended
from tests.api.test_lists import pages
from tests.api.test_scripts import save
from tests.client import Api, Person
from tests.stack import Stack
from tests.waiting import eventually


def make(api: Api, script: str = "tool", **fields: Any) -> dict[str, Any]:
    """A new schedule's record."""
    times = {} if {"cron", "every", "at"} & fields.keys() else {"every": 3600}
    record: dict[str, Any] = api.post("/api/schedules", {"script": script, **times, **fields}).data
    return record


def soon(seconds: float = 0.5) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def test_a_schedule_from_its_making_to_its_end(alice: Api) -> None:
    me = alice.get("/api/user").data["username"]
    save(alice, "tool", parameters=[{"name": "days", "type": "integer"}])
    made = make(
        alice, cron="*/5 * * * *", timezone="America/New_York", parameters={"days": 3}, catch_up="all",
        catch_up_limit=5, overlap="skip", jitter=0, overrides={"timeout": 5},
    )  # fmt: skip
    assert (made["owner"], made["script"], made["version"], made["enabled"]) == (me, f"{me}/tool", None, True)
    assert made["cron"] == "*/5 * * * *" and made["overrides"] == {"timeout": 5.0} and made["problem"] is None
    path = f"/api/schedules/{made['id']}"
    assert alice.get(path).data == made
    coming = alice.get(f"{path}/next").data
    assert len(coming) == 5 and coming[0]["at"] == made["next_fire"]
    for earlier, later in pairwise(coming):
        assert at(later["at"]) - at(earlier["at"]) == timedelta(minutes=5)
    assert all(item["local"][-6:] in ("-05:00", "-04:00") for item in coming)
    assert len(alice.get(f"{path}/next?count=3").data) == 3
    paused = alice.post(f"{path}/pause").data
    assert (paused["enabled"], paused["next_fire"]) == (False, None)
    assert alice.get(f"{path}/next").data[0]["at"] >= coming[0]["at"]
    assert alice.post(f"{path}/resume").data["enabled"] is True
    changed = alice.patch(path, {"every": 7200, "version": 1}).data
    assert (changed["cron"], changed["every"], changed["version"]) == (None, 7200.0, 1)
    assert alice.patch(path, {"end": "2099-01-01T00:00:00Z"}).data["every"] == 7200.0
    assert [item["id"] for item in alice.get("/api/schedules").data] == [made["id"]]
    second = make(alice, parameters={"days": 1})
    assert [[item["id"] for item in page] for page in pages(alice, "/api/schedules?limit=1")] == [
        [second["id"]], [made["id"]],
    ]  # fmt: skip
    assert len(alice.get(f"/api/schedules?script={me}/tool").data) == 2
    assert alice.get(f"/api/schedules?script={me}/other").data == []
    assert alice.delete(path).data == {}
    assert alice.get(path).status == 404


def test_it_really_fires(alice: Api) -> None:
    save(alice, "hello", code="echo hello $name", parameters=[{"name": "name", "type": "string"}])
    made = make(alice, "hello", at=soon(), parameters={"name": "world"})
    record = eventually(lambda: (seen := alice.get(f"/api/schedules/{made['id']}").data)["last_job"] and seen)
    job = ended(alice, record["last_job"])
    assert (job["stdout"], job["status"], job["schedule"]) == ("hello world\n", "COMPLETED", made["id"])
    assert job["fired_for"] == made["at"] == record["last_fire"] and record["next_fire"] is None
    assert at(job["created_at"]) - at(made["at"]) < timedelta(seconds=5)
    again = alice.post(f"/api/schedules/{made['id']}/run?wait=20").data
    assert (again["stdout"], again["schedule"], again["fired_for"]) == ("hello world\n", made["id"], None)


def test_others_see_nothing_of_it(alice: Api, bob: Api, admin: Api) -> None:
    save(alice, "tool")
    made = make(alice)
    path = f"/api/schedules/{made['id']}"
    assert bob.get("/api/schedules").data == []
    assert admin.get(path).data == made
    assert admin.post(f"{path}/run").status == admin.patch(path, {"every": 60}).status == 403
    assert admin.post(f"{path}/pause").data["enabled"] is False
    assert admin.post(f"{path}/resume").status == 403
    assert alice.post(f"{path}/resume").data["enabled"] is True


def test_a_deactivated_owner_s_pauses_itself(admin: Api, person: Callable[..., Person]) -> None:
    owner = person()
    save(owner.api, "tool")
    made = make(owner.api, at=soon(2))
    admin.patch(f"/api/users/{owner.username}", {"active": False}).data  # noqa: B018
    record = eventually(lambda: (seen := admin.get(f"/api/schedules/{made['id']}").data)["problem"] and seen)
    assert (record["enabled"], record["problem"]) == (False, "Its owner is not active any more.")
    assert record["last_job"] is None


BAD = {
    "no times": {"every": None}, "two kinds": {"cron": "* * * * *"}, "a line": {"every": None, "cron": "* * * *"},
    "never": {"every": None, "cron": "0 0 30 2 *"}, "words": {"every": None, "cron": "every day"},
    "too often": {"every": 59}, "a zone": {"timezone": "../../etc/passwd"}, "another zone": {"timezone": "Mars/Base"},
    "the past": {"every": None, "at": "2020-01-01T00:00:00Z"}, "over": {"end": "2020-01-01T00:00:00Z"},
    "the wrong way": {"start": "2040-01-01T00:00:00Z", "end": "2039-01-01T00:00:00Z"},
    "catch up": {"catch_up": "some"}, "how many": {"catch_up_limit": 0}, "overlap": {"overlap": "never"},
    "no script": {"script": "none"}, "another's script": {"script": "nobody/tool"}, "three": {"script": "a/b/c"},
    "version": {"version": 2}, "parameters": {"parameters": {"days": 1}}, "jitter": {"jitter": 86_401},
    "the year 1": {"start": "0001-01-01T00:00:00Z"}, "the year 9999": {"every": None, "at": "9999-12-31T23:59:59Z"},
    "an end in 9999": {"end": "9999-12-31T00:00:00Z"}, "queue": {"overlap": "queue"}, "late": {"jitter": 3600},
    "much": {"overrides": {"stdin": "x" * 70_000}},
    "overrides": {"overrides": {"run_at": "2040-01-01T00:00:00Z"}}, "code": {"overrides": {"code": "true"}},
    "secrets": {"overrides": {"env": {"A": "b"}, "secret_env": {"A": "B"}}}, "field": {"x": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_work_is_refused_and_not_stored(alice: Api, name: str) -> None:
    save(alice, "tool")
    answer = alice.post("/api/schedules", {"script": "tool", "every": 3600, **BAD[name]})
    assert (answer.status, answer.code) == (400, "invalid_request"), answer.body
    assert alice.get("/api/schedules").data == []


def test_what_is_wrong_is_said_of_its_field_alone(alice: Api) -> None:
    save(alice, "tool")
    for wrong, field in (({"every": 0}, "every"), ({"at": "tomorrow"}, "at"), ({"every": 60, "jitter": 60}, "jitter")):
        answer = alice.post("/api/schedules", {"script": "tool", **wrong})
        assert (answer.status, list(answer.body["data"]["errors"])) == (400, [field])


def test_an_archived_script_s_is_paused(alice: Api) -> None:
    save(alice, "tool")
    path = f"/api/schedules/{make(alice)['id']}"
    alice("DELETE", "/api/scripts/tool").data  # noqa: B018
    record = alice.get(path).data
    assert (record["enabled"], record["next_fire"], "is archived" in record["problem"]) == (False, None, True)
    for answer in (alice.post(f"{path}/run"), alice.post(f"{path}/resume"), alice.patch(path, {"jitter": 1})):
        assert (answer.status, answer.code) == (409, "conflict")
    alice.post("/api/scripts/tool/restore").data  # noqa: B018
    assert alice.post(f"{path}/resume").data["problem"] is None


def test_what_a_patch_may_not_do(alice: Api) -> None:
    save(alice, "tool")
    made = make(alice)
    path = f"/api/schedules/{made['id']}"
    for body in ({"script": "tool"}, {"every": 1}, {"parameters": {"x": 1}}, {"version": 9}, {"enabled": True},
                 {"every": 60, "cron": "@daily"}, {"end": "2020-01-01T00:00:00Z"}, {"timezone": "x"},
                 {"every": None}, {"cron": None, "every": None, "at": None}):  # fmt: skip
        assert alice.patch(path, body).status == 400, body
    assert alice.get(path).data == made


def test_a_token_needs_what_its_jobs_need(alice: Api) -> None:
    alice.put("/api/secrets/KEY", {"value": "hidden"}).data  # noqa: B018
    save(alice, "plain")
    save(alice, "secretive", defaults={"secrets": ["KEY"]})

    def limited(*scopes: str) -> Api:
        made = alice.post("/api/tokens", {"name": "x", "scopes": ["schedules:write", "schedules:read", *scopes]})
        return alice.using(made.data["token"])

    body = {"script": "plain", "every": 3600}
    assert limited().post("/api/schedules", body).status == 403
    number = limited("scripts:run").post("/api/schedules", body).data["id"]
    for method, rest in (("PATCH", ""), ("POST", "/resume"), ("POST", "/run")):
        answer = limited()(method, f"/api/schedules/{number}{rest}", json={} if method == "PATCH" else None)
        assert answer.status == 403
    secretive = {"script": "secretive", "every": 3600}
    assert limited("scripts:run").post("/api/schedules", secretive).status == 403
    assert limited("scripts:run", "secrets:use").post("/api/schedules", secretive).status == 200


def test_how_many(person: Callable[..., Person], stack: Stack) -> None:
    api = person().api
    save(api, "tool")
    most = stack.settings.schedules.max_schedules
    for _ in range(most):
        make(api)
    answer = api.post("/api/schedules", {"script": "tool", "every": 3600})
    assert (answer.status, answer.code) == (409, "conflict") and str(most) in answer.body["message"]
