"""Limits of jobs: what is asked for, what is had without, what an administrator sets for a user, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shell_service.limits import NAMES, SIZES
from tests.client import Answer, Api, Person, new_person
from tests.stack import Stack
from tests.waiting import eventually

MIB = 2**20
LATER = {"code": "true", "delay": 3600}


def refused(api: Api, body: dict[str, Any], status: int = 400, path: str = "/api/jobs") -> Answer:
    """Assert that this is refused, and that nothing was stored."""
    answer = api.post(path, body)
    assert answer.status == status, answer.body
    assert answer.code == {400: "invalid_request", 403: "not_allowed"}[status]
    assert api.get("/api/user").data["queued"] == 0
    return answer


def set_limits(admin: Api, owner: Person, **limits: Any) -> Any:
    """Change a user's limits; returns those that hold."""
    return admin.patch(f"/api/users/{owner.username}", {"limits": limits}).data["limits"]


def test_what_is_asked_for_and_defaults_for_the_rest(alice: Api, stack: Stack) -> None:
    defaults = {name: getattr(stack.settings.limits, name).default for name in NAMES}
    asked = {"memory": "64MiB", "processes": 16, "cpu": 0.5, "output": 1000}
    expected = {**defaults, **asked, "memory": 64 * MIB}
    job = alice.submit(delay=3600, limits=asked)
    (of_batch,) = alice.post("/api/jobs/batch", {"jobs": [{**LATER, "limits": asked}]}).data
    plain = alice.submit(delay=3600, timeout=None)
    assert job["limits"] == of_batch["limits"] == expected
    assert (plain["limits"], plain["timeout"]) == (defaults, stack.settings.limits.timeout.default)
    listed = {item["id"]: item for item in alice.get("/api/jobs").data}
    for record in (job, of_batch, plain):
        for seen in (alice.job(record["id"]), listed[record["id"]]):
            assert {name: seen[name] for name in ("limits", "timeout")} == {
                name: record[name] for name in ("limits", "timeout")
            }
    ended = alice.submit("head -c 5000 /dev/zero", limits=asked, wait=30)
    assert (ended["status"], ended["stdout_bytes"], ended["output_truncated"]) == ("COMPLETED", 1000, True)


@pytest.mark.parametrize("name", ["timeout", *NAMES])
def test_more_than_the_maximum_is_refused(alice: Api, stack: Stack, name: str) -> None:
    most = int(getattr(stack.settings.limits, name).max)
    over = most + (MIB if name in SIZES else 1)
    body = {"timeout": over} if name == "timeout" else {"limits": {name: over}}
    answer = refused(alice, {**LATER, **body})
    (problem,) = answer.errors[name] if name == "timeout" else answer.errors["limits"][name]
    shown = (f"{most // 2**30} GiB", f"{over // MIB} MiB") if name in SIZES else (str(most), str(over))
    assert problem == f"Must be at most {shown[0]}, not {shown[1]}; an administrator can allow you more."
    assert name in answer.body["message"] and problem in answer.body["message"]
    whole = {"timeout": most} if name == "timeout" else {"limits": {name: most}}
    record = alice.submit(delay=3600, **whole)
    assert (record if name == "timeout" else record["limits"])[name] == most


def test_all_that_is_too_much_is_said_at_once_with_the_job_s_index(alice: Api) -> None:
    bad = {**LATER, "timeout": 10**6, "limits": {"memory": "1TiB", "processes": 5000, "cpu": 1}, "secrets": ["NONE"]}
    one = refused(alice, bad).errors
    assert (one.keys(), one["limits"].keys()) == ({"timeout", "limits", "secrets"}, {"memory", "processes"})
    answer = refused(
        alice, {"jobs": [LATER, bad, LATER, {**LATER, "limits": {"disk": "1TiB"}}]}, 400, "/api/jobs/batch"
    )
    assert answer.errors["jobs"] == {
        "1": one,
        "3": {"limits": {"disk": [answer.errors["jobs"]["3"]["limits"]["disk"][0]]}},
    }
    assert "jobs.1." in answer.body["message"]
    (alone,) = refused(alice, {"jobs": [bad]}, 400, "/api/jobs/batch").errors["jobs"].items()
    assert alone == ("0", one)
    # Whoever comes with it in the same transaction is not refused with it.
    assert alice.post("/api/jobs", LATER).status == 200


def test_an_administrator_sets_defaults_and_maxima_for_one_user(
    admin: Api, person: Callable[..., Person], bob: Api
) -> None:
    owner = person(job={"max": {"memory": "512MiB", "processes": 10_000}, "default": {"cpu": 2, "timeout": 60}})
    configured = bob.get("/api/user").data["limits"]
    limits = owner.api.get("/api/user").data["limits"]
    assert limits == admin.get(f"/api/users/{owner.username}").data["limits"]
    # A default is never above the maximum; what was not set is as configured.
    assert limits["job"]["default"] == {**configured["job"]["default"], "memory": 512 * MIB, "cpu": 2, "timeout": 60}
    assert limits["job"]["max"] == {**configured["job"]["max"], "memory": 512 * MIB, "processes": 10_000}

    job = owner.api.submit(delay=3600)
    (of_batch,) = owner.api.post("/api/jobs/batch", {"jobs": [LATER]}).data
    for record in (job, of_batch, owner.api.job(job["id"])):
        assert {**record["limits"], "timeout": record["timeout"]} == limits["job"]["default"]
    owner.api.post("/api/jobs/cancel", {}).data  # noqa: B018
    problem = refused(owner.api, {**LATER, "limits": {"memory": "513MiB"}}).errors["limits"]["memory"][0]
    assert "at most 512 MiB, not 513 MiB" in problem
    record = owner.api.submit(delay=3600, limits={"memory": "512MiB", "processes": 10_000}, timeout=3600)
    assert (record["limits"]["processes"], record["timeout"]) == (10_000, 3600)
    refused(bob, {**LATER, "limits": {"processes": 10_000}})


def test_limits_of_a_user_s_jobs_are_changed_one_by_one(admin: Api, person: Callable[..., Person]) -> None:
    owner = person()
    configured = owner.api.get("/api/user").data["limits"]["job"]
    set_limits(admin, owner, job={"max": {"memory": "2GiB", "disk": "1GiB"}}, max_running=3)
    set_limits(admin, owner, job={"default": {"memory": "2GiB"}})
    found = set_limits(admin, owner, job={"max": {"disk": None, "timeout": 10}})
    assert found["max_running"] == 3
    assert found["job"]["max"] == {**configured["max"], "memory": 2048 * MIB, "timeout": 10}
    assert found["job"]["default"] == {**configured["default"], "memory": 2048 * MIB, "timeout": 10}
    assert set_limits(admin, owner, job={"default": None})["job"]["default"] == {**configured["default"], "timeout": 10}
    assert set_limits(admin, owner, job=None)["job"] == configured
    for bad in (
        {"job": {"default": {"memory": "9GiB"}}},  # above the configured maximum
        {"job": {"max": {"memory": "1GiB"}, "default": {"memory": "2GiB"}}},
        {"job": {"max": {"memory": 1}}}, {"job": {"max": {"memory": "x"}}}, {"job": {"max": {"uid": 1}}},
        {"job": {"most": {}}}, {"job": {"max": []}}, {"job": 5}, {"network": "yes"}, {"network": 1},
    ):  # fmt: skip
        answer = admin.patch(f"/api/users/{owner.username}", {"limits": {"max_running": 9, **bad}})
        assert (answer.status, answer.errors.keys()) == (400, {"limits"}), bad
    answer = admin.post("/api/users", {"username": "never", "limits": {"job": {"default": {"memory": "9GiB"}}}})
    assert answer.status == 400
    assert "limits.job.default.memory" in answer.body["message"] and "8 GiB" in answer.body["message"]
    assert admin.get("/api/users/never").status == 404
    assert set_limits(admin, owner)["max_running"] == 3
    assert set_limits(admin, owner)["job"] == configured


def test_rerun_asks_for_the_same_or_for_what_it_is_told(admin: Api, person: Callable[..., Person]) -> None:
    owner = person()
    first = owner.api.submit(delay=3600, limits={"memory": "2GiB", "disk": "1GiB"}, timeout=100)
    owner.api.post("/api/jobs/cancel", {}).data  # noqa: B018
    path = f"/api/jobs/{first['id']}/rerun"
    same = owner.api.post(path).data
    assert (same["limits"], same["timeout"]) == (first["limits"], 100)
    other = owner.api.post(path, {"limits": {"memory": "64MiB"}, "timeout": 5}).data
    assert other["limits"] == {**first["limits"], "memory": 64 * MIB}
    assert other["timeout"] == 5
    for job in (same, other):
        owner.api.post(f"/api/jobs/{job['id']}/cancel").data  # noqa: B018
    for bad in ({"limits": {"memory": 1}}, {"code": "id"}, {"env": {}}, {"network": None}):
        assert owner.api.post(path, bad).status == 400
    set_limits(admin, owner, job={"max": {"memory": "1GiB"}})
    problem = refused(owner.api, {}, path=path).errors["limits"]["memory"][0]
    assert "at most 1 GiB, not 2 GiB" in problem
    again = owner.api.post(path, {"limits": {"memory": "1GiB"}}).data
    assert again["limits"] == {**first["limits"], "memory": 1024 * MIB}


def test_the_network_takes_permission_and_scope(admin: Api, person: Callable[..., Person]) -> None:
    owner = person()
    assert owner.api.get("/api/user").data["limits"]["network"] is False
    plain = {**LATER, "network": False}
    answer = refused(owner.api, {**LATER, "network": True}, 403)
    assert answer.errors.keys() == {"network"} and "administrator" in answer.body["message"]
    answer = refused(owner.api, {"jobs": [LATER, plain, {**LATER, "network": True}]}, 403, "/api/jobs/batch")
    assert (answer.errors["jobs"].keys(), answer.body["message"][:8]) == ({"2"}, "jobs.2: ")
    assert set_limits(admin, owner, network=True)["network"] is True
    scopes = ["jobs:read", "jobs:write"]
    narrow = owner.api.using(owner.api.post("/api/tokens", {"name": "narrow", "scopes": scopes}).data["token"])
    answer = refused(narrow, {**LATER, "network": True}, 403)
    assert answer.errors.keys() == {"network"} and "scope jobs:network" in answer.body["message"]
    answer = refused(narrow, {"jobs": [LATER, {**LATER, "network": True}]}, 403, "/api/jobs/batch")
    assert answer.errors["jobs"].keys() == {"1"}
    assert narrow.post("/api/jobs", plain).data["network"] is False


def test_rerun_is_looked_at_as_a_whole(admin: Api, person: Callable[..., Person]) -> None:
    """Another token may have made the first job, and permission may have gone since."""
    owner = person(network=True)
    job = owner.api.submit(delay=3600, network=True)
    assert job["network"] is True
    owner.api.post("/api/jobs/cancel", {}).data  # noqa: B018
    path = f"/api/jobs/{job['id']}/rerun"
    scopes = ["jobs:read", "jobs:write"]
    narrow = owner.api.using(owner.api.post("/api/tokens", {"name": "narrow", "scopes": scopes}).data["token"])
    assert "scope jobs:network" in refused(narrow, {}, 403, path).body["message"]
    assert narrow.post(path, {"network": False}).data["network"] is False
    owner.api.post("/api/jobs/cancel", {}).data  # noqa: B018
    assert set_limits(admin, owner, network=None)["network"] is False
    assert "administrator" in refused(owner.api, {}, 403, path).body["message"]


def test_who_may_not_use_the_network_any_more_has_no_job_left_that_does(
    admin: Api, person: Callable[..., Person]
) -> None:
    owner = person(network=True, max_running=0)
    waiting = [owner.api.submit(network=network, retries=3) for network in (True, False)]
    set_limits(admin, owner, network=False)
    set_limits(admin, owner, max_running=2)
    eventually(lambda: all(owner.api.job(job["id"])["finished_at"] for job in waiting))
    outward, plain = (owner.api.job(job["id"]) for job in waiting)
    assert (outward["status"], outward["attempt"], plain["status"]) == ("FAILED", 1, "COMPLETED")
    assert "an administrator can allow it" in outward["reason"]


def test_an_administrator_is_a_user_like_others_here(admin: Api) -> None:
    deputy = new_person(admin, role="admin")
    refused(deputy.api, {**LATER, "limits": {"memory": "9GiB"}})
    refused(deputy.api, {**LATER, "network": True}, 403)
