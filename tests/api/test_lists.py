"""Many jobs: lists of them, page by page, and cancelling one or many."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.api.test_jobs import ended
from tests.client import Api
from tests.waiting import eventually

# -- lists -------------------------------------------------------------------------------------------------------------


def pages(api: Api, path: str) -> list[list[dict[str, Any]]]:
    """Follow the Link header, by its own address, to the end."""
    found = []
    address: str | None = path
    while address:
        answer = api.get(address)
        found.append(answer.data)
        link = answer.headers.get("Link")
        address = None
        if link:
            match = re.fullmatch(r'<([^<>]+)>; rel="next"', link)
            assert match
            address = match[1]
            assert address.startswith(("http://localhost:", "http://127.0.0.1:"))
        assert len(found) < 100
    return found


def test_pages_are_newest_first_and_stay_so_under_new_jobs(alice: Api) -> None:
    jobs = alice.post("/api/jobs/batch", {"jobs": [{"code": "true", "delay": 3600}] * 25}).data
    expected = [job["id"] for job in reversed(jobs)]
    assert [[job["id"] for job in page] for page in pages(alice, "/api/jobs?limit=10")] == [
        expected[:10],
        expected[10:20],
        expected[20:],
    ]
    first = alice.get("/api/jobs?limit=10")
    newer = alice.submit(delay=3600)
    second = alice.get(re.fullmatch(r'<(.+)>; rel="next"', first.headers["Link"])[1])  # type: ignore[index]
    assert [job["id"] for job in second.data] == expected[10:20]
    assert alice.get("/api/jobs?limit=1").data[0]["id"] == newer["id"]
    exact = alice.get("/api/jobs?limit=26")
    assert len(exact.data) == 26 and "Link" not in exact.headers
    alice.post("/api/jobs/cancel", {}).data  # noqa: B018


def test_a_page_s_link_keeps_the_filters(alice: Api) -> None:
    jobs = [{"code": "true", "delay": 3600, "name": "ab" if number % 2 else "c"} for number in range(10)]
    assert alice.post("/api/jobs/batch", {"jobs": jobs}).status == 200
    since = "2020-01-01T00:00:00%2B01:00"
    found = pages(alice, f"/api/jobs?limit=2&name=ab&status=PENDING&created_after={since}")
    assert [len(page) for page in found] == [2, 2, 1]
    assert {job["name"] for page in found for job in page} == {"ab"}
    alice.post("/api/jobs/cancel", {}).data  # noqa: B018


def test_filters(alice: Api, bob: Api, admin: Api) -> None:
    failed = alice.submit("exit 1", wait=30, name="one")
    completed = alice.submit("true", wait=30, name="two")
    running = alice.submit("sleep 30", name="two")
    eventually(lambda: alice.job(running["id"])["status"] == "RUNNING")
    pending = alice.submit(delay=3600, name="three")
    other = bob.submit(delay=3600, name="three")
    username = failed["submitter"]

    def ids(query: str, api: Api = alice) -> list[str]:
        return [job["id"] for job in api.get(f"/api/jobs?{query}").data]

    every = [pending["id"], running["id"], completed["id"], failed["id"]]
    assert ids("") == every
    for job, status in ((failed, "FAILED"), (completed, "COMPLETED"), (running, "RUNNING"), (pending, "PENDING")):
        assert ids(f"status={status}") == [job["id"]]
    assert ids("status=NODE_FAIL") == []
    assert ids("name=two") == [running["id"], completed["id"]]
    assert ids("name=two&status=COMPLETED") == [completed["id"]]
    assert ids("name=tw") == ids("name=TWO") == ids("name=none") == []
    assert ids(f"created_after={completed['created_at']}") == every[:2]
    assert ids(f"created_before={completed['created_at']}") == every[3:]
    assert ids(f"submitter={username}") == every
    assert ids(f"submitter={other['submitter']}") == []
    assert ids(f"submitter={username}", admin) == every
    assert ids("submitter=nobody-has-this-name", admin) == []
    assert {pending["id"], other["id"]} <= set(ids("name=three", admin))
    alice.post("/api/jobs/cancel", {}).data  # noqa: B018


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=-1", "limit=x", "limit=1.5", "limit=", "limit=1&limit=2",
     "limit=99999999999999999999",
     "cursor=", "cursor=x", "cursor=" + "A" * 21, "cursor=" + "A" * 101, "cursor=%00", "cursor=AAAA",
     "status=pending", "status=", "status=DONE", "status=PENDING&status=FAILED", "status=PENDING,FAILED",
     "name=", "name=a%20b", "name=%00", "name=" + "x" * 101, "name=%ff", "submitter=", "submitter=%00",
     "created_after=yesterday", "created_after=2030-01-01", "created_before=1e9", "created_before=",
     "created_after=2030-01-01T00:00:00+01:00",  # a plus in a query is a space
     "what=1", "Status=PENDING", "order=asc", "=", "%00=1", "offset=5"],
)  # fmt: skip
def test_no_lists(alice: Api, query: str) -> None:
    answer = alice.get(f"/api/jobs?{query}")
    assert (answer.status, answer.code) == (400, "invalid_request")


def test_lists_show_a_little_of_long_texts(alice: Api) -> None:
    code = "head -c 100000 /dev/zero | tr '\\0' x; echo end #" + "y" * 5000
    job = alice.submit(code, wait=30)
    assert (len(job["stdout"]), job["stdout"][-5:], job["stdout_bytes"]) == (65536, "xend\n", 100_004)
    (listed,) = alice.get("/api/jobs").data
    assert (len(listed["stdout"]), listed["stdout"][-5:], listed["stdout_bytes"]) == (1024, "xend\n", 100_004)
    assert listed["code"] == code[:1024]
    assert alice.job(job["id"])["code"] == code


def test_lists_and_batches_leave_out_long_arguments(alice: Api, admin: Api) -> None:
    """What is short enough is decided by the database for lists, and by a worker for new jobs: it is the same."""
    fits, fits_not = ["x" * 500, "ü\n" * 129], ["x" * 500, "ü\n" * 129 + "x"]  # 1,024 bytes as JSON, and one more
    assert len(json.dumps(fits, ensure_ascii=False).encode()) == 1024
    env = {"A": "x" * 1015}  # 1,024 bytes with a name of one letter
    body = {
        "jobs": [
            {"code": "y" * 2000, "delay": 3600, "args": fits, "env": env},
            {"code": "true", "delay": 3600, "args": fits_not, "env": {"AB": env["A"]}},
            {"code": "true", "delay": 3600, "args": ["z" * 100_000] * 10},
        ]
    }
    headers = {"Idempotency-Key": "long"}
    new = alice.post("/api/jobs/batch", body, headers=headers).data
    assert [job["args"] for job in new] == [fits, None, None]
    assert [job["env"] for job in new] == [env, None, {}]
    assert new[0]["code"] == "y" * 1024
    assert alice.post("/api/jobs/batch", body, headers=headers).data == new
    assert list(reversed(alice.get("/api/jobs").data)) == new
    seen = admin.get(f"/api/jobs?limit=3&submitter={new[0]['submitter']}").data
    assert [job["env"] for job in seen] == [{}, None, {"A": None}]
    for job, request in zip(new, body["jobs"], strict=True):
        whole = alice.job(job["id"])
        assert (whole["code"], whole["args"]) == (request["code"], request["args"])
    alice.post("/api/jobs/cancel", {}).data  # noqa: B018


def test_a_page_of_large_jobs_is_small(alice: Api) -> None:
    for _ in range(3):
        jobs = [{"code": "#" * 1000, "delay": 3600, "args": ["\u0001" * 60_000], "env": {"A": "b"}}] * 20
        answer = alice.post("/api/jobs/batch", {"jobs": jobs})
        assert len(answer.data) == 20
        assert int(answer.headers["Content-Length"]) < 20 * 3000
    page = alice.get("/api/jobs?limit=1000")
    assert len(page.data) == 60
    assert int(page.headers["Content-Length"]) < 60 * 3000
    alice.post("/api/jobs/cancel", {}).data  # noqa: B018


# -- cancelling --------------------------------------------------------------------------------------------------------


def test_a_waiting_job_ends_at_once(alice: Api) -> None:
    job = alice.submit(delay=3600)
    answer = alice.post(f"/api/jobs/{job['id']}/cancel").data
    assert (answer["status"], answer["reason"]) == ("CANCELLED", f"cancelled by {job['submitter']}")
    assert answer["cancelled_by"] == job["submitter"]
    assert answer["finished_at"] and answer["started_at"] is None and answer["stdout"] is None
    again = alice.post(f"/api/jobs/{job['id']}/cancel").data
    assert again == answer == alice.job(job["id"])


def test_a_running_job_is_asked_and_then_killed(alice: Api, admin: Api) -> None:
    polite = alice.submit("trap 'echo bye; exit 0' TERM; echo ready; sleep 30 & wait")
    stubborn = alice.submit("trap '' TERM; echo ready; while :; do sleep 1; done")
    for job in (polite, stubborn):
        eventually(lambda job=job: alice.job(job["id"])["stdout"] == "ready\n")
        admin.post(f"/api/jobs/{job['id']}/cancel").data  # noqa: B018
    polite, stubborn = ended(alice, polite["id"]), ended(alice, stubborn["id"])
    for job in (polite, stubborn):
        assert (job["status"], job["reason"], job["cancelled_by"]) == ("CANCELLED", "cancelled by admin", "admin")
    assert (polite["stdout"], polite["return_code"]) == ("ready\nbye\n", 0)
    assert stubborn["signal"] == "SIGKILL"
    for job in (polite, stubborn):
        assert alice.post(f"/api/jobs/{job['id']}/cancel").data == job


def test_a_finished_job_stays_as_it_is(alice: Api) -> None:
    job = alice.submit("true", wait=30)
    assert alice.post(f"/api/jobs/{job['id']}/cancel").data == job == alice.job(job["id"])


def test_many_are_cancelled_by_the_list_s_filters(alice: Api, bob: Api, admin: Api) -> None:
    def submit(api: Api, name: str) -> dict[str, Any]:
        return api.submit(delay=3600, name=name)

    mine, also, theirs = submit(alice, "a"), submit(alice, "b"), submit(bob, "a")
    running = alice.submit("sleep 30", name="r")
    eventually(lambda: alice.job(running["id"])["status"] == "RUNNING")

    def cancel(api: Api, **filters: str) -> int:
        return api.post("/api/jobs/cancel", filters).data["cancelled"]

    def statuses() -> list[str]:
        return [alice.job(mine["id"])["status"], alice.job(also["id"])["status"], bob.job(theirs["id"])["status"]]

    assert cancel(alice, name="none") == 0
    assert cancel(alice, submitter=theirs["submitter"]) == 0
    assert cancel(alice, created_before=mine["created_at"]) == 0
    assert cancel(alice, name="a") == 1
    assert statuses() == ["CANCELLED", "PENDING", "PENDING"]
    assert cancel(alice, status="RUNNING") == 1
    assert ended(alice, running["id"])["status"] == "CANCELLED"
    assert statuses() == ["CANCELLED", "PENDING", "PENDING"]
    assert cancel(admin) == 0  # without filters: one's own
    assert cancel(alice) == 1
    assert statuses() == ["CANCELLED", "CANCELLED", "PENDING"]
    assert cancel(admin, submitter=theirs["submitter"], name="a", status="PENDING") == 1
    assert bob.job(theirs["id"])["cancelled_by"] == "admin"


@pytest.mark.parametrize("body", [{"status": "DONE"}, {"limit": 5}, {"ids": []}, {"name": 5}, {"created_after": "x"}])
def test_no_cancels(alice: Api, body: dict[str, Any]) -> None:
    job = alice.submit(delay=3600)
    assert alice.post("/api/jobs/cancel", body).status == 400
    assert alice.job(job["id"])["status"] == "PENDING"
