"""Scripts are run by name: pinned to a version, with checked parameters, as the job of whoever runs them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from tests.api.test_jobs import at, ended
from tests.api.test_lists import pages
from tests.api.test_scripts import save
from tests.client import Api, Person
from tests.waiting import eventually

ALL = [
    {"name": "count", "type": "integer", "minimum": 1, "maximum": 9, "default": 3, "position": 2},
    {"name": "text", "type": "string", "max_length": 10, "position": 1},
    {"name": "share", "type": "number", "default": 0.5, "env": "SHARE"},
    {"name": "loud", "type": "boolean", "default": False},
    {"name": "color", "type": "choice", "choices": ["red", "dark blue"], "default": "red"},
    {"name": "note", "type": "string", "required": False},
    {"name": "key", "type": "secret", "required": False},
]
SHOW = 'printf "%s|" "$@" "$text" "$count" "$SHARE" "$loud" "$color" "${note-none}" "${key-none}"'


def run(api: Api, script: str, wait: float | None = 20, **body: Any) -> dict[str, Any]:
    record: dict[str, Any] = api.post(f"/api/scripts/{script}/run", {**body, "wait": wait} if wait else body).data
    return record


def test_a_run_is_pinned_to_its_version(alice: Api) -> None:
    me = alice.get("/api/user").data["username"]
    save(alice, "pinned", code="echo one", defaults={"env": {"A": "b"}, "timeout": 50, "retries": 1})
    alice.put("/api/scripts/pinned", {"code": "echo two"})
    newest, oldest = run(alice, "pinned"), run(alice, f"{me}/pinned", version=1)
    assert (newest["stdout"], newest["script_version"]) == ("two\n", 2)
    assert (oldest["stdout"], oldest["script_version"]) == ("one\n", 1)
    for job in (newest, oldest):
        assert (job["script"], job["name"], job["parameters"]) == (f"{me}/pinned", "pinned", {})
        assert (job["env"], job["timeout"], job["retries"], job["status"]) == ({"A": "b"}, 50, 1, "COMPLETED")
    changed = run(
        alice, "pinned",
        overrides={"env": {"C": "d"}, "timeout": 5, "limits": {"memory": "64MiB"}, "args": ["x"], "priority": 3},
    )  # fmt: skip
    assert (changed["env"], changed["timeout"], changed["args"], changed["priority"]) == (
        {"A": "b", "C": "d"}, 5, ["x"], 3,
    )  # fmt: skip
    assert changed["limits"]["memory"] == 64 << 20
    plain = alice.submit()
    assert (plain["script"], plain["script_version"], plain["parameters"]) == (None, None, None)
    again = alice.post(f"/api/jobs/{oldest['id']}/rerun").data
    assert (again["script"], again["script_version"], again["code"]) == (f"{me}/pinned", 1, "echo one")


def test_parameters_are_variables_and_arguments(alice: Api) -> None:
    alice.put("/api/secrets/MINE", {"value": "xyzzy-hidden"}).data  # noqa: B018
    save(alice, "all", code=SHOW, parameters=ALL, defaults={"args": ["last"]})
    job = run(alice, "all", parameters={"text": "$(id) 'a\"b'"[:10]})
    assert job["stdout"] == "$(id) 'a\"b|3|last|$(id) 'a\"b|3|0.5|false|red|none|none|"
    assert job["parameters"] == {"text": "$(id) 'a\"b", "count": 3, "share": 0.5, "loud": False, "color": "red"}
    job = run(
        alice, "all",
        parameters={
            "text": "é", "count": 5.0, "share": 1e-7, "loud": True, "color": "dark blue", "note": "", "key": "MINE",
        },
    )  # fmt: skip
    assert job["stdout"] == "é|5|last|é|5|1e-7|true|dark blue||***|"
    assert job["parameters"]["key"] == "MINE" and job["secret_env"] == {"key": "MINE"}
    assert "xyzzy" not in repr(job)


def test_all_that_is_wrong_is_told_at_once_and_nothing_is_stored(alice: Api) -> None:
    save(alice, "strict", parameters=ALL)
    answer = alice.post(
        "/api/scripts/strict/run",
        {
            "parameters": {
                "count": "3",
                "share": "x",
                "loud": 1,
                "color": "green",
                "note": "a\0",
                "key": "a-b",
                "other": 1,
            }
        },
    )
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert answer.errors["parameters"].keys() == {"text", "count", "share", "loud", "color", "note", "key", "other"}
    for parameters in (
        {"text": "x" * 11}, {"text": "x", "count": 0}, {"text": "x", "count": 10}, {"text": "x", "count": 1.5},
        {"text": "x", "count": 1e300}, {"text": "x", "count": True}, {"text": 5}, {"text": None}, {"text": ["x"]},
    ):  # fmt: skip
        assert alice.post("/api/scripts/strict/run", {"parameters": parameters}).status == 400, parameters
    for content in (b'{"parameters": {"text": "x", "share": NaN}}', b'{"parameters": {"text": "x", "share": 1e999}}'):
        answer = alice("POST", "/api/scripts/strict/run", content=content, headers={"Content-Type": "application/json"})
        assert answer.status == 400
    for overrides in ({"env": {"text": "y"}}, {"env": {"A": "b" * 200_000}}, {"stdin": "b" * 2_000_000}, {"code": "x"},
                      {"limits": {"memory": "1PiB"}}, {"secrets": ["NONE"]}, {"network": True}):  # fmt: skip
        answer = alice.post("/api/scripts/strict/run", {"parameters": {"text": "x"}, "overrides": overrides})
        assert answer.status in (400, 403), overrides
    answer = alice.post("/api/scripts/strict/run", {"parameters": {"text": "x", "key": "NONE"}})
    assert answer.errors == {"parameters": {"key": ["You have no secret NONE; PUT /api/secrets/NONE makes it."]}}
    assert alice.get("/api/jobs").data == []


def test_an_idempotency_key_makes_one_run(alice: Api) -> None:
    save(alice, "once", overlap="skip", code="sleep 30")
    key = {"Idempotency-Key": uuid.uuid4().hex}
    first = alice.post("/api/scripts/once/run", {}, headers=key).data
    assert alice.post("/api/scripts/once/run", {}, headers=key).data["id"] == first["id"]  # not skipped for itself
    assert alice.post("/api/scripts/once/run", {"version": 1}, headers=key).status == 422
    answer = alice.post("/api/scripts/once/run", {})
    assert (answer.status, answer.code, answer.errors) == (409, "overlap", {"job": [first["id"]]})
    assert first["id"] in answer.body["message"]
    alice.post(f"/api/jobs/{first['id']}/cancel")


def test_a_key_is_good_whatever_has_changed_since(alice: Api) -> None:
    save(alice, "asked", code="echo one")
    key = {"Idempotency-Key": uuid.uuid4().hex}
    first = alice.post("/api/scripts/asked/run", {"wait": 20}, headers=key).data
    alice.put("/api/scripts/asked", {"parameters": [{"name": "days", "type": "integer"}]}).data  # noqa: B018
    assert alice.post("/api/scripts/asked/run", {"wait": 20}, headers=key).data == first
    alice.delete("/api/scripts/asked").data  # noqa: B018
    again = alice.post("/api/scripts/asked/run", {"wait": 20}, headers=key).data
    assert again == first
    assert alice.post("/api/scripts/asked/run", {"wait": 19}, headers=key).status == 422
    assert alice.post("/api/scripts/asked/run", {}).status == 409


def test_runs_wait_for_each_other_end_to_end(alice: Api, bob: Api) -> None:
    owner, colleague = (api.get("/api/user").data["username"] for api in (alice, bob))
    save(alice, "serial", code="sleep 0.2")
    alice.post("/api/scripts/serial/shares", {"user": colleague, "level": "run"}).data  # noqa: B018
    jobs = [run(api, f"{owner}/serial", wait=None) for api in (alice, bob, alice, bob)]
    told = alice.job(jobs[2]["id"])
    assert told["pending_reason"] in ("waiting for its turn among the jobs of its script", None)
    done = [ended(api, job["id"]) for api, job in zip((alice, bob, alice, bob), jobs, strict=True)]
    assert [job["status"] for job in done] == ["COMPLETED"] * 4
    for before, after in pairwise(done):
        assert at(after["started_at"]) >= at(before["finished_at"])


def test_previous_runs_are_cancelled(alice: Api) -> None:
    save(alice, "newest", code="trap 'exit 1' TERM; sleep 60 & wait", overlap="cancel_previous")
    first = run(alice, "newest", wait=None)
    eventually(lambda: alice.job(first["id"])["status"] == "RUNNING")
    second = run(alice, "newest", wait=None)
    assert ended(alice, first["id"])["status"] == "CANCELLED"
    eventually(lambda: alice.job(second["id"])["status"] == "RUNNING")
    alice.post(f"/api/jobs/{second['id']}/cancel")


def test_at_most_one_waits(alice: Api) -> None:
    save(alice, "latest", code="sleep 60", overlap="queue_latest")
    first = run(alice, "latest", wait=None)
    eventually(lambda: alice.job(first["id"])["status"] == "RUNNING")
    others = [run(alice, "latest", wait=None)["id"] for _ in range(3)]
    assert [alice.job(job_id)["status"] for job_id in others] == ["CANCELLED", "CANCELLED", "PENDING"]
    assert alice.job(first["id"])["status"] == "RUNNING"
    alice.post("/api/jobs/cancel", {"name": "latest"})


def test_a_run_is_the_job_of_whoever_runs_it(alice: Api, bob: Api, person: Callable[..., Person]) -> None:
    owner, colleague = (api.get("/api/user").data["username"] for api in (alice, bob))
    save(alice, "tool", code='echo "$(cat /run/job/secrets/KEY) $WORD"', defaults={"secrets": ["KEY"]},
         parameters=[{"name": "WORD", "type": "string"}])  # fmt: skip
    alice.post("/api/scripts/tool/shares", {"user": colleague, "level": "run"}).data  # noqa: B018
    alice.put("/api/secrets/KEY", {"value": "that of alice"}).data  # noqa: B018
    path = f"/api/scripts/{owner}/tool"
    assert bob.post(f"{path}/run", {"parameters": {"WORD": "x"}}).errors.keys() == {"secrets"}
    bob.put("/api/secrets/KEY", {"value": "that of bob"}).data  # noqa: B018
    job = run(bob, f"{owner}/tool", parameters={"WORD": "private"})
    assert (job["submitter"], job["script"], job["stdout"]) == (colleague, f"{owner}/tool", "*** private\n")
    # The owner sees that it ran, and no more.
    (seen,) = alice.get(f"{path}/jobs").data
    assert (seen["id"], seen["submitter"], seen["status"]) == (job["id"], colleague, "COMPLETED")
    assert "private" not in repr(seen)
    assert alice.get(f"/api/jobs/{job['id']}").status == alice.get(f"/api/jobs/{job['id']}/stdout").status == 404
    assert alice.get("/api/jobs").data == []
    shared = run(bob, f"{owner}/tool", parameters={"WORD": "shown"}, share_output=True)
    assert alice.job(shared["id"])["stdout"] == "*** shown\n"
    assert alice.get(f"/api/jobs/{shared['id']}/stdout").body == b"*** shown\n"
    seen = alice.job(shared["id"])
    assert (seen["parameters"], seen["args"]) == ({"WORD": None}, None) and bob.job(shared["id"])["args"] == []
    assert alice.post(f"/api/jobs/{shared['id']}/rerun").status == 403
    assert person().api.get(f"/api/jobs/{shared['id']}").status == 404
    # Others with whom it is shared see their own.
    third = person()
    alice.post("/api/scripts/tool/shares", {"user": third.username, "level": "edit"}).data  # noqa: B018
    assert third.api.get(f"{path}/jobs").data == []
    assert third.api.get(f"{path}/status").data["latest"] is None
    assert [item["id"] for item in bob.get(f"{path}/jobs").data] == [shared["id"], job["id"]]


def test_cancelling_a_job_that_is_shared_is_its_owner_s(alice: Api, bob: Api) -> None:
    owner, colleague = (api.get("/api/user").data["username"] for api in (alice, bob))
    save(alice, "long", code="sleep 60")
    alice.post("/api/scripts/long/shares", {"user": colleague, "level": "run"}).data  # noqa: B018
    job = run(bob, f"{owner}/long", wait=None, share_output=True)
    assert alice.post(f"/api/jobs/{job['id']}/cancel").status == 403
    assert bob.job(job["id"])["status"] in ("PENDING", "RUNNING")
    assert bob.post(f"/api/jobs/{job['id']}/cancel").status == 200


def test_how_a_script_does(alice: Api) -> None:
    save(alice, "does", code='[ "$fail" = false ] || exit 3',
         parameters=[{"name": "fail", "type": "boolean", "default": False}], overlap="parallel")  # fmt: skip
    empty = alice.get("/api/scripts/does/status").data
    assert (empty["latest"], empty["success_rate"], empty["durations"], empty["counted"]) == (None, None, None, 0)
    good = run(alice, "does")
    bad = run(alice, "does", parameters={"fail": True})
    best = run(alice, "does")
    cancelled = run(alice, "does", wait=None, overrides={"delay": 3600})
    alice.post(f"/api/jobs/{cancelled['id']}/cancel")
    waiting = run(alice, "does", wait=None, overrides={"delay": 3600})
    status = alice.get("/api/scripts/does/status").data
    assert status["latest"]["id"] == waiting["id"] and status["latest"]["status"] == "PENDING"
    assert (status["last_success"]["id"], status["last_failure"]["id"]) == (best["id"], bad["id"])
    assert (status["waiting"], status["running"], status["counted"], status["success_rate"]) == (1, 0, 4, 0.5)
    times = sorted((good["wall_seconds"], best["wall_seconds"]))
    assert status["durations"] == {"shortest": times[0], "median": times[0], "longest": times[1]}
    listed = [page["id"] for page in alice.get("/api/scripts/does/jobs").data]
    assert listed == [waiting["id"], cancelled["id"], best["id"], bad["id"], good["id"]]
    assert [len(page) for page in pages(alice, "/api/scripts/does/jobs?limit=2")] == [2, 2, 1]
    assert [item["id"] for item in alice.get("/api/scripts/does/jobs?status=FAILED").data] == [bad["id"]]
    assert [item["id"] for item in alice.get("/api/scripts/does/jobs?status=PENDING").data] == [waiting["id"]]


@pytest.mark.parametrize("body", [{"wait": 301}, {"wait": "5"}, {"version": 0}, {"parameters": []}, {"x": 1},
                                  {"overrides": {"run_at": "2030-01-01T00:00:00Z", "delay": 1}}])  # fmt: skip
def test_bad_requests(alice: Api, body: dict[str, Any]) -> None:
    save(alice, "asked")
    assert alice.post("/api/scripts/asked/run", body).status == 400
    assert alice.post("/api/scripts/asked/run?wait=1", {"wait": 1}).status == 400
    assert alice.post("/api/scripts/none/run", {}).status == 404


def test_a_token_may_be_good_for_running_alone(alice: Api) -> None:
    save(alice, "only", code="echo ran")
    token = alice.post("/api/tokens", {"name": "ci", "scopes": ["scripts:run"]}).data["token"]
    api = alice.using(token)
    assert run(api, "only")["stdout"] == "ran\n"
    assert api.post("/api/jobs", {"code": "true"}).status == api.put("/api/scripts/only", {"code": "x"}).status == 403
