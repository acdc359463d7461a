"""Limits of what a user may have waiting and running, and submit: they hold, and hit nobody else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.client import Api, Person
from tests.waiting import eventually


def test_queued_jobs_are_limited_by_user(person: Callable[..., Person], bob: Api) -> None:
    api = person(max_queued=5).api
    jobs = [api.submit(delay=3600) for _ in range(3)]
    refused = api.post("/api/jobs/batch", {"jobs": [{"code": "true", "delay": 3600}] * 3})
    assert (refused.status, refused.code) == (429, "limit_reached")  # all or none
    assert "5 jobs queued" in refused.body["message"]
    assert api.get("/api/user").data["queued"] == 3
    jobs += api.post("/api/jobs/batch", {"jobs": [{"code": "true", "delay": 3600}] * 2}).data
    for attempt in (
        lambda: api.post("/api/jobs", {"code": "true"}),
        lambda: api.post("/api/jobs?wait=5", {"code": "true"}),
        lambda: api.post(f"/api/jobs/{jobs[0]['id']}/rerun"),
        lambda: api.using(api.post("/api/tokens", {"name": "other"}).data["token"]).post("/api/jobs", {"code": "true"}),
    ):
        assert attempt().status == 429
    assert bob.submit("true", wait=30)["status"] == "COMPLETED"
    api.post(f"/api/jobs/{jobs[0]['id']}/cancel").data  # noqa: B018
    assert api.post("/api/jobs", {"code": "true", "delay": 3600}).status == 200


def test_submissions_are_limited_by_the_minute(person: Callable[..., Person], bob: Api) -> None:
    api = person(jobs_per_minute=10).api
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: api.post("/api/jobs", {"code": "true"}), range(30)))
    statuses = [answer.status for answer in answers]
    assert set(statuses) == {200, 429}
    assert statuses.count(200) in (10, 11)  # a new minute may have begun
    (message,) = {answer.body["message"].split(";")[0] for answer in answers if answer.status == 429}
    assert message == "You may submit 10 jobs a minute"
    api.post("/api/jobs/cancel", {}).data  # noqa: B018
    assert api.post("/api/jobs", {"code": "true"}).status == 429  # cancelling gives nothing back
    assert bob.submit("true", wait=30)["status"] == "COMPLETED"
    # what is refused does not count, so that who keeps asking is not kept out for ever
    assert api.get("/api/jobs").status == 200


@pytest.mark.parametrize(("limit", "says"), [("max_queued", "5 jobs queued"), ("jobs_per_minute", "5 jobs a minute")])
def test_a_batch_that_can_never_be_taken_is_not_said_to_be_one_later(
    person: Callable[..., Person], limit: str, says: str
) -> None:
    api = person(**{limit: 5}).api
    job = {"code": "true", "delay": 3600}
    answer = api.post("/api/jobs/batch", {"jobs": [job] * 6})
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert says in answer.body["message"] and "6" in answer.body["message"]
    assert "Retry-After" not in answer.headers
    assert api.post("/api/jobs/batch", {"jobs": [job] * 4}).status == 200
    later = api.post("/api/jobs/batch", {"jobs": [job] * 4})
    assert later.status == 429
    # Of four jobs a minute's two and more must be over: in this minute by the clock, and a part of the next.
    assert limit == "max_queued" or 10 <= int(later.headers["Retry-After"]) <= 120
    api.post("/api/jobs/cancel", {}).data  # noqa: B018


def test_running_jobs_are_limited_by_user(person: Callable[..., Person], bob: Api) -> None:
    api = person(max_running=2).api
    jobs = [api.submit("sleep 30") for _ in range(5)]
    eventually(lambda: api.get("/api/user").data["running"] == 2)
    assert bob.submit("true", wait=30)["status"] == "COMPLETED"
    assert [api.get("/api/user").data[name] for name in ("running", "queued")] == [2, 3]
    running = [job for job in jobs if api.job(job["id"])["status"] == "RUNNING"]
    api.post(f"/api/jobs/{running[0]['id']}/cancel").data  # noqa: B018
    eventually(lambda: api.get("/api/user").data["queued"] == 2)
    eventually(lambda: api.get("/api/user").data["running"] == 2)
    api.post("/api/jobs/cancel", {}).data  # noqa: B018


def test_nothing_is_allowed_where_the_limit_is_none(person: Callable[..., Person]) -> None:
    for limits in ({"max_queued": 0}, {"jobs_per_minute": 0}):
        assert person(**limits).api.post("/api/jobs", {"code": "true"}).status == 429
    idle = person(max_running=0).api
    job = idle.submit("true")
    assert idle.job(job["id"])["pending_reason"] == "you already run 0 jobs"
    idle.post(f"/api/jobs/{job['id']}/cancel").data  # noqa: B018
