"""About the service: readiness, figures, metrics, interpreters, what it says when something is stopped."""

from __future__ import annotations

import os
import re
import uuid
from typing import Any

import pytest

from shell_service import __version__
from shell_service.limits import NAMES
from shell_service.models import STATUSES
from tests.client import Api, Person, new_person
from tests.stack import Stack
from tests.waiting import eventually


def test_sysinfo_is_public_and_says_no_more_than_it_should(stranger: Api) -> None:
    answer = stranger.get("/api/sysinfo")
    assert answer.data == {"version": __version__, "ready": True, "runners": None}
    assert answer.body["version"] == __version__


def test_sysinfo_tells_administrators_what_holds_for_jobs(admin: Api, alice: Api, stranger: Api) -> None:
    assert alice.get("/api/sysinfo").data["runners"] is None
    narrow = admin.using(admin.post("/api/tokens", {"name": "narrow", "scopes": ["jobs:read"]}).data["token"])
    assert narrow.get("/api/sysinfo").data["runners"] is None
    assert stranger.get("/api/sysinfo", headers={"Authorization": "token wrong"}).status == 401
    eventually(lambda: admin.get("/api/sysinfo").data["runners"][0]["obstacle"] is None)  # its walls are tested
    (runner,) = admin.get("/api/sysinfo").data["runners"]
    assert (runner["name"], runner["state"]) == ("runner_00", "live")
    assert (runner["sandbox"], runner["uids"]) == ("walls", "own" if os.geteuid() == 0 else runner["uids"])
    assert runner["limits"].keys() == set(NAMES)
    assert set(runner["limits"].values()) <= {"hard", "watched"}
    assert runner["network"] is None or len(runner["network"]) > 5
    # What is said of the network is what jobs get.
    owner = new_person(admin, network=True)
    answer = owner.api.post("/api/jobs", {"code": "true", "network": True})
    if runner["network"]:
        assert (answer.status, answer.code) == (409, "conflict") and runner["network"] in answer.body["message"]
    else:
        assert answer.data["network"] is True


def test_shells_are_those_that_are_there(alice: Api, stack: Stack) -> None:
    shells = alice.get("/api/shells").data
    assert all(shell.keys() == {"name", "path"} for shell in shells)
    found = {shell["name"]: shell["path"] for shell in shells}
    assert found.items() <= stack.settings.shells.items()
    assert next(iter(found)) == "sh"


def test_stats_are_one_s_own(alice: Api, bob: Api, admin: Api) -> None:
    before = admin.get("/api/stats").data
    assert before.keys() == {"jobs", "oldest_ready_seconds", "runners"}
    alice.submit("true", wait=30)
    alice.submit("exit 1", wait=30)
    alice.submit(delay=3600)
    running = alice.submit("sleep 30")
    eventually(lambda: alice.job(running["id"])["status"] == "RUNNING")
    counts = alice.get("/api/stats").data["jobs"]
    assert counts == {**dict.fromkeys(STATUSES, 0), "COMPLETED": 1, "FAILED": 1, "PENDING": 1, "RUNNING": 1}
    assert set(bob.get("/api/stats").data["jobs"].values()) == {0}
    after = admin.get("/api/stats").data["jobs"]
    assert after["COMPLETED"] > before["jobs"]["COMPLETED"]
    assert after["FAILED"] > before["jobs"]["FAILED"]
    alice.post("/api/jobs/cancel", {}).data  # noqa: B018


def test_stats_tell_of_runners_and_of_what_waits(admin: Api, stack: Stack) -> None:
    owner: Person = new_person(admin, max_running=0)
    assert owner.api.get("/api/stats").data["oldest_ready_seconds"] is None
    job = owner.api.submit("true")
    figures = owner.api.get("/api/stats").data
    assert 0 <= figures["oldest_ready_seconds"] < 10
    (runner,) = figures["runners"]
    assert (runner["name"], runner["state"], runner["slots"]) == ("runner_00", "live", stack.settings.runner.slots)
    owner.api.post(f"/api/jobs/{job['id']}/cancel").data  # noqa: B018


# -- metrics ---------------------------------------------------------------------------------------------------------

SAMPLE = re.compile(r'[a-z_]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? -?[0-9.e+-]+(Inf|NaN)?')


def test_metrics_are_prometheus_text(stranger: Api, alice: Api) -> None:
    alice.submit("true", wait=30)
    answer = stranger.get("/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = answer.body.decode().splitlines()
    for line in lines:
        assert line.startswith("#") or SAMPLE.fullmatch(line), line
    names = {re.split("[{ ]", line)[0] for line in lines if not line.startswith("#")}
    assert {"http_requests_total", "jobs", "runner_slots", "queue_oldest_seconds"} <= names
    text = answer.body.decode()
    assert 'status="COMPLETED"' in text
    assert alice.get("/api/user").data["username"] not in text


def test_metrics_are_for_administrators_and_this_machine(workers: list[Api], admin: Api, alice: Api) -> None:
    """The router says who asks: here in its place, for addresses that are not of this machine."""
    for worker in workers:
        for address, api, status in (
            ("203.0.113.9", worker.using(""), 401),
            ("203.0.113.9", worker.using(alice.token), 403),
            ("203.0.113.9", worker.using(admin.token), 200),
            ("2001:db8::1", worker.using(""), 401),
            ("127.0.0.1", worker.using(""), 200),
            ("::1", worker.using(""), 200),
        ):
            answer = api.get("/metrics", headers={"X-Real-IP": address, "X-Request-Id": "x"})
            assert answer.status == status, address


def test_requests_are_counted_over_all_workers(admin: Api, workers: list[Api]) -> None:
    def count() -> float:
        text = admin.get("/metrics").body.decode()
        found = re.findall(r'^http_requests_total\{handler="Shells",method="GET",status="200"\} ([0-9.]+)$', text, re.M)
        return float(found[0]) if found else 0.0

    before = count()
    for worker in workers:
        for _ in range(5):
            worker.get("/api/shells", token=admin.token, headers={"X-Request-Id": "x"}).data  # noqa: B018
    assert count() == before + 10


def test_methods_that_are_made_up_are_counted_as_one(admin: Api, workers: list[Api]) -> None:
    """Each label is kept for as long as the worker lives."""
    for worker in workers:
        for number in range(5):
            assert worker(f"MADEUP{number}", "/api/shells", headers={"X-Request-Id": "x"}).status == 405
    text = admin.get("/metrics").body.decode()
    assert "MADEUP" not in text
    assert 'http_requests_total{handler="Shells",method="other",status="405"} 10.0\n' in text


# -- addresses that are not there ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/api", "/api/", "/api/none", "/api/jobs/", "/api//jobs", "/api/jobs/x/y/z", "/api/sysinfo/", "/api/jobs;x=1",
     "/api/JOBS"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_there_is_nothing_at_other_addresses(stranger: Api, method: str, path: str) -> None:
    answer = stranger(method, path)
    assert (answer.status, answer.code) == (404, "not_found")
    assert "/api/openapi.json" in answer.body["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/api/jobs", "GET, POST"), ("DELETE", "/api/jobs", "GET, POST"), ("GET", "/api/jobs/batch/", None),
        ("GET", "/api/jobs/x/cancel", "POST"), ("POST", "/api/sysinfo", "GET"), ("POST", "/metrics", "GET"),
        ("DELETE", "/api/users/x", "GET, PATCH"), ("POST", "/api/jobs/x/stream", "GET"),
        ("LINK", "/api/jobs", "GET, POST"),
    ],
)  # fmt: skip
def test_methods_that_an_address_does_not_have(alice: Api, method: str, path: str, allowed: str | None) -> None:
    answer = alice(method, path)
    if allowed is None:
        assert answer.status == 404
    else:
        assert (answer.status, answer.code, answer.headers["Allow"]) == (405, "method_not_allowed", allowed)


# -- when something is stopped: at the end, as it disturbs the others --------------------------------------------------


def _told_that_no_runner_is_up(api: Api) -> list[dict[str, Any]] | None:
    """A new job, and the answer to the same request again, when both say so: each worker looks once a second."""
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    told = [api.post("/api/jobs", {"code": "true"}, headers=headers).data for _ in range(2)]
    return told if all(job["pending_reason"] == "no runner is up" for job in told) else None


def test_without_a_runner_jobs_wait_and_say_so(alice: Api, stack: Stack) -> None:
    stack.supervisor.call("supervisor.stopProcessGroup", "runner")
    try:
        job = alice.submit("echo late")
        seen = eventually(lambda: (now := alice.job(job["id"]))["pending_reason"] == "no runner is up" and now)
        assert (seen["status"], seen["position"]) == ("PENDING", 1)
        new, again = eventually(lambda: _told_that_no_runner_is_up(alice))
        assert new == again
        assert alice.submit("echo never", wait=0.1)["pending_reason"] == "no runner is up"
        assert {one["pending_reason"] for one in alice.get("/api/jobs").data} == {"no runner is up"}
        assert alice.get("/api/stats").data["runners"] == []
    finally:
        stack.supervisor.call("supervisor.startProcessGroup", "runner", False)
    final = eventually(lambda: (now := alice.job(job["id"]))["finished_at"] and now)
    assert final["stdout"] == "late\n"


def test_without_workers_every_answer_is_503_and_the_status_still_answers(alice: Api, stack: Stack) -> None:
    stack.supervisor.call("supervisor.stopProcessGroup", "app")
    try:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"):
            for path in ("/api/jobs", "/api/sysinfo", "/api/none"):
                answer = alice(method, path, unavailable=True)
                assert answer.status == 503
                assert method == "HEAD" or answer.code == "unavailable"
        status = alice.client.get("/status", headers={"Accept": "application/json"})
        assert (status.status_code, status.json()["status"]) == (200, "success")
        page = alice.client.get("/status", headers={"Accept": "text/html"})
        assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    finally:
        stack.supervisor.call("supervisor.startProcessGroup", "app", False)
    eventually(lambda: alice("GET", "/api/user", unavailable=True).status == 200)
