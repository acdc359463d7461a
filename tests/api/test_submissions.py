"""Submitting: waiting for the end, batches, the same request again."""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.api.test_jobs import PRINT_ARGS, RECORD, ended
from tests.client import Api, Person
from tests.stack import Stack
from tests.waiting import eventually

# -- waiting -----------------------------------------------------------------------------------------------------------


def test_wait_answers_with_the_end(alice: Api) -> None:
    assert alice.submit("sleep 0.3; echo done", wait=30)["stdout"] == "done\n"
    answer = alice.post("/api/jobs", {"code": "echo done"}, headers={"Prefer": "respond-async, wait=30"})
    assert answer.data["stdout"] == "done\n"
    assert answer.headers["Preference-Applied"] == "wait=30"


def test_wait_answers_at_its_limit(alice: Api) -> None:
    begun = time.monotonic()
    job = alice.submit("sleep 30", wait=0.5)
    assert 0.5 <= time.monotonic() - begun < 5
    assert job["status"] in ("RUNNING", "PENDING")
    alice.post(f"/api/jobs/{job['id']}/cancel").data  # noqa: B018


def test_not_waiting_is_at_once(alice: Api) -> None:
    for options in ({}, {"headers": {"Prefer": "wait=0"}}, {"params": {"wait": "0"}}):
        job = alice.post("/api/jobs", {"code": "sleep 30"}, **options).data
        assert job["status"] == "PENDING"
    # the query says it before the header
    answer = alice.post("/api/jobs?wait=0", {"code": "sleep 30"}, headers={"Prefer": "wait=30"})
    assert answer.data["status"] == "PENDING"
    assert "Preference-Applied" not in answer.headers
    assert alice.post("/api/jobs?wait=0", {"code": "true"}, headers={"Prefer": "wait=x"}).status == 200
    alice.post("/api/jobs/cancel", {}).data  # noqa: B018


def test_wait_may_be_300_and_not_more(alice: Api) -> None:
    assert alice.submit("true", wait=300)["status"] == "COMPLETED"
    assert alice.post("/api/jobs", {"code": "true"}, headers={"Prefer": "wait=300"}).data["status"] == "COMPLETED"


@pytest.mark.parametrize("wait", ["301", "-1", "300.1", "x", "", "nan", "inf", "1e3", "1e999", "true", "9" * 20, "٣"])
def test_no_waits(alice: Api, wait: str) -> None:
    answer = alice.post("/api/jobs", {"code": "true"}, params={"wait": wait})
    assert (answer.status, list(answer.errors)) == (400, ["wait"])


@pytest.mark.parametrize("wait", ["301", "-1", "x", "1.5"])
def test_no_preferences(alice: Api, wait: str) -> None:
    answer = alice.post("/api/jobs", {"code": "true"}, headers={"Prefer": f"wait={wait}"})
    assert (answer.status, list(answer.errors)) == (400, ["Prefer"])
    assert alice.get("/api/jobs").data == []


def test_hundreds_wait_at_once(stack: Stack, alice: Api) -> None:
    """500 wait for jobs that all end at one moment, and nobody else is disturbed meanwhile."""
    count = 500
    body = json.dumps({"code": "true", "delay": 3600, "name": "crowd"})
    request = (
        f"POST /api/jobs?wait=300 HTTP/1.1\r\nHost: x\r\nAuthorization: token {alice.token}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )

    async def wait() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", stack.settings.server.port)
        writer.write(request.encode())
        answer = await reader.read()
        writer.close()
        return answer

    def assert_undisturbed() -> None:
        times = []
        for _ in range(20):
            begun = time.monotonic()
            alice.get("/api/user").data  # noqa: B018
            times.append(time.monotonic() - begun)
        assert statistics.median(times) < 0.1

    async def main() -> list[bytes]:
        waiting = [asyncio.create_task(wait()) for _ in range(count)]
        await asyncio.to_thread(eventually, lambda: alice.get("/api/user").data["queued"] == count)
        await asyncio.to_thread(assert_undisturbed)
        assert not any(task.done() for task in waiting)
        begun = time.monotonic()
        cancelled = await asyncio.to_thread(alice.post, "/api/jobs/cancel", {"name": "crowd"})
        assert cancelled.data == {"cancelled": count}
        answers = await asyncio.gather(*waiting)
        assert time.monotonic() - begun < 5
        return answers

    for answer in asyncio.run(main()):
        head, body = answer.decode().split("\r\n\r\n")
        assert head.startswith("HTTP/1.1 200 ")
        assert json.loads(body)["data"]["status"] == "CANCELLED"


def test_who_goes_away_while_waiting_leaves_the_job(alice: Api, stack: Stack) -> None:
    with pytest.raises(httpx.ReadTimeout):
        alice.client.post(
            "/api/jobs?wait=300", json={"code": "true", "delay": 3600}, headers=alice.headers(), timeout=0.5
        )
    (job,) = alice.get("/api/jobs").data
    assert job["status"] == "PENDING"


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_batch_is_stored_in_order(alice: Api) -> None:
    jobs = alice.post("/api/jobs/batch", {"jobs": [{"code": f"echo {n}", "name": f"n{n}"} for n in range(50)]}).data
    assert [job["name"] for job in jobs] == [f"n{n}" for n in range(50)]
    assert set(jobs[0]) == set(RECORD)
    for number, job in enumerate(jobs):
        assert ended(alice, job["id"])["stdout"] == f"{number}\n"
    assert [job["name"] for job in alice.get("/api/jobs").data] == [f"n{n}" for n in reversed(range(50))]


def test_a_batch_of_a_thousand_and_not_more(alice: Api) -> None:
    job = {"code": "true", "delay": 3600}
    assert len(alice.post("/api/jobs/batch", {"jobs": [job] * 1000}).data) == 1000
    assert alice.post("/api/jobs/cancel", {}).data == {"cancelled": 1000}
    for jobs in ([job] * 1001, [], None, "x", {"a": 1}):
        answer = alice.post("/api/jobs/batch", {"jobs": jobs})
        assert (answer.status, list(answer.errors)) == (400, ["jobs"])
    assert alice.get("/api/user").data["queued"] == 0


def test_a_batch_with_one_bad_job_stores_none(alice: Api) -> None:
    good, bad = {"code": "true", "delay": 3600}, {"code": "true", "timeout": -1, "what": 1}
    answer = alice.post("/api/jobs/batch", {"jobs": [good, good, bad, good, {}]})
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert answer.errors["jobs"].keys() == {"2", "4"}
    assert answer.errors["jobs"]["2"].keys() == {"timeout", "what"}
    assert answer.errors["jobs"]["4"].keys() == {"code"}
    assert "jobs.2." in answer.body["message"]
    assert alice.get("/api/jobs").data == []


@pytest.mark.parametrize("jobs", [[None], ["x"], [[]], [1], [{"code": "true"}, None]])
def test_no_batches(alice: Api, jobs: Any) -> None:
    answer = alice.post("/api/jobs/batch", {"jobs": jobs})
    assert (answer.status, list(answer.errors)) == (400, ["jobs"])
    assert alice.get("/api/jobs").data == []


def test_concurrent_submissions_do_not_fail_one_another(alice: Api, bob: Api, person: Callable[..., Person]) -> None:
    """They share a transaction: one that is refused must not take its neighbours with it."""
    full = person(max_queued=0).api

    def one(number: int) -> int:
        api = (alice, bob, full)[number % 3]
        return api.post("/api/jobs", {"code": "true", "delay": 3600} if number % 5 else {"code": ""}).status

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(one, range(150)))
    for number, status in enumerate(found):
        assert status == (400 if number % 5 == 0 else 429 if number % 3 == 2 else 200), number
    assert [api.get("/api/user").data["queued"] for api in (alice, bob, full)] == [40, 40, 0]


# -- running again -----------------------------------------------------------------------------------------------------


def test_rerun_is_a_new_job_with_the_same_request(alice: Api) -> None:
    request = {
        "code": PRINT_ARGS + '; echo "$A"; cat', "args": ["x y"], "env": {"A": "b"}, "stdin": "in", "timeout": 77,
        "priority": 3, "retries": 1, "retry_delay": 0, "on_lost": "requeue", "name": "again", "shell": "bash",
    }  # fmt: skip
    first = alice.submit(wait=30, **request)
    second = alice.post(f"/api/jobs/{first['id']}/rerun").data
    assert second["id"] != first["id"]
    assert second["status"] == "PENDING"
    second = ended(alice, second["id"])
    for name in (*(request.keys() - {"stdin"}), "stdout", "status"):
        assert second[name] == first[name], name
    assert alice.job(first["id"]) == first


def test_rerun_of_a_later_job_is_at_once(alice: Api) -> None:
    job = alice.submit("true", delay=3600)
    again = alice.post(f"/api/jobs/{job['id']}/rerun").data
    assert again["run_at"] is None
    assert ended(alice, again["id"])["status"] == "COMPLETED"


def test_rerun_takes_an_idempotency_key(alice: Api) -> None:
    first, other = alice.submit(wait=30), alice.submit(wait=30)
    headers = {"Idempotency-Key": "again"}
    once, twice = (alice.post(f"/api/jobs/{first['id']}/rerun", headers=headers).data for _ in range(2))
    assert once["id"] == twice["id"]
    assert alice.post(f"/api/jobs/{other['id']}/rerun", headers=headers).status == 422


# -- idempotency -------------------------------------------------------------------------------------------------------


def test_the_same_key_and_request_is_the_same_job(alice: Api, bob: Api) -> None:
    headers = {"Idempotency-Key": "my key".replace(" ", "-")}
    body = {"code": "true", "delay": 3600, "name": "one"}
    first = alice.post("/api/jobs", body, headers=headers).data
    again = alice.post("/api/jobs", dict(reversed(body.items())), headers=headers).data
    assert again["id"] == first["id"]
    spaced = alice("POST", "/api/jobs", headers={**headers, "Content-Type": "application/json"},
                   content=b'{ "name":"one" ,\n"delay":3600,"code":"true"}')  # fmt: skip
    assert spaced.data["id"] == first["id"]
    other = alice.post("/api/jobs", {**body, "name": "two"}, headers=headers)
    assert (other.status, other.code) == (422, "idempotency_mismatch")
    assert alice.post("/api/jobs/batch", {"jobs": [body]}, headers=headers).status == 422
    assert bob.post("/api/jobs", {**body, "name": "two"}, headers=headers).data["id"] != first["id"]
    assert len(alice.get("/api/jobs").data) == 1
    assert alice.post("/api/jobs", body).data["id"] != first["id"]


def test_the_same_key_waits_too(alice: Api) -> None:
    headers = {"Idempotency-Key": "w"}
    first = alice.post("/api/jobs", {"code": "sleep 0.3; echo x"}, headers=headers).data
    again = alice.post("/api/jobs?wait=30", {"code": "sleep 0.3; echo x"}, headers=headers).data
    assert (again["id"], again["stdout"]) == (first["id"], "x\n")
    final = alice.post("/api/jobs?wait=30", {"code": "sleep 0.3; echo x"}, headers=headers).data
    assert final == again


def test_a_batch_is_idempotent_as_a_whole(alice: Api) -> None:
    headers = {"Idempotency-Key": "b"}
    body = {"jobs": [{"code": "true", "delay": 3600, "name": f"n{n}"} for n in range(20)]}
    first = alice.post("/api/jobs/batch", body, headers=headers).data
    again = alice.post("/api/jobs/batch", body, headers=headers).data
    assert [job["id"] for job in again] == [job["id"] for job in first]
    assert alice.post("/api/jobs/batch", {"jobs": body["jobs"][:19]}, headers=headers).status == 422
    assert alice.post("/api/jobs/cancel", {}).data == {"cancelled": 20}


def test_the_same_key_at_once_makes_one_job(alice: Api) -> None:
    barrier = threading.Barrier(16)

    def submit(_: int) -> str:
        barrier.wait()
        record = alice.post("/api/jobs", {"code": "true", "delay": 3600}, headers={"Idempotency-Key": "k"}).data
        return str(record["id"])

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(submit, range(16)))) == 1
    assert len(alice.get("/api/jobs").data) == 1


def test_a_refused_request_does_not_use_up_its_key(person: Callable[..., Person], admin: Api) -> None:
    owner = person(max_queued=0)
    headers, body = {"Idempotency-Key": "k"}, {"code": "true", "delay": 3600}
    assert owner.api.post("/api/jobs", body, headers=headers).status == 429
    assert owner.api.post("/api/jobs", {"code": ""}, headers=headers).status == 400
    admin.patch(f"/api/users/{owner.username}", {"limits": {"max_queued": 5}}).data  # noqa: B018
    assert owner.api.post("/api/jobs", body, headers=headers).status == 200


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "é", "a\tb"])
def test_no_keys(alice: Api, key: str) -> None:
    answer = alice.post("/api/jobs", {"code": "true"}, headers={"Idempotency-Key": key.encode()})  # type: ignore[dict-item]
    assert answer.status == 400
    assert "Idempotency-Key" in answer.body["message"]
    assert alice.get("/api/jobs").data == []


def test_ids_are_never_given_twice(alice: Api, bob: Api) -> None:
    def batch(api: Api) -> list[str]:
        jobs = api.post("/api/jobs/batch", {"jobs": [{"code": "true", "delay": 3600}] * 200}).data
        return [job["id"] for job in jobs]

    with ThreadPoolExecutor(4) as pool:
        ids = list(itertools.chain(*pool.map(batch, [alice, bob] * 4)))
    assert len(set(ids)) == len(ids) == 1600
    assert all(uuid.UUID(job_id[-32:]).version == 7 for job_id in ids)
    for api in (alice, bob):
        api.post("/api/jobs/cancel", {}).data  # noqa: B018
