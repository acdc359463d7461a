"""Limits: of failed authentications by address, of submissions by user; neither dodged, neither hitting others."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from baselayer import token as tokens
from tests.client import Answer, Api, Person, new_address
from tests.stack import Stack
from tests.waiting import eventually


def guesses(api: Api, count: int, **options: dict[str, str]) -> list[Answer]:
    """So many requests, each with a token that is well formed and nobody's."""
    return [api.get("/api/user", token=tokens.mint(), **options) for _ in range(count)]


def test_guesses_are_throttled_by_address(stack: Stack, alice: Api) -> None:
    most = stack.settings.access.failures_per_minute
    address = new_address()
    with Api(stack.base_url, address=address) as api:
        answers = guesses(api, 3 * most)
        statuses = [answer.status for answer in answers]
        assert set(statuses) == {401, 429}
        assert statuses[0] == 401
        assert statuses.count(401) <= most + 5  # one a second comes back meanwhile, per worker
        assert statuses[-5:] == [429] * 5
        assert answers[-1].code == "limit_reached"
        assert "address" in answers[-1].body["message"]
        # Whatever the header looks like, and whatever the client says of where it comes from.
        for headers in (
            {}, {"Authorization": "x"}, {"Authorization": "Bearer shs_x"}, {"Authorization": "Basic eDp5"},
            {"X-Forwarded-For": "203.0.113.1"}, {"X-Real-IP": "203.0.113.2"}, {"Forwarded": "for=203.0.113.3"},
            {"X-Forwarded-For": "127.0.0.1"}, {"X-Client-IP": "203.0.113.4"}, {"User-Agent": "other"},
        ):  # fmt: skip
            answers = [api.get("/api/user", headers=headers) for _ in range(6)]
            assert 429 in {answer.status for answer in answers}, headers
            assert {answer.status for answer in answers} <= {401, 429}
        # A good token works from there as before, on every route, and so do others from elsewhere.
        for _ in range(20):
            assert api.get("/api/user", token=alice.token).status == 200
        assert api.post("/api/jobs", {"code": "true"}, token=alice.token).status == 200
        assert api.get("/api/sysinfo").status == 200
    with Api(stack.base_url, address=new_address()) as other:
        assert other.get("/api/user").status == 401


def test_a_good_token_between_guesses_does_not_forgive_them(stack: Stack, alice: Api) -> None:
    most = stack.settings.access.failures_per_minute
    with Api(stack.base_url, address=new_address()) as api:
        for _ in range(most + 20):
            api.get("/api/user", token=alice.token)
            last = api.get("/api/user")
        assert last.status == 429


@pytest.mark.parametrize("path", ["/api/jobs", "/api/jobs/job_" + "0" * 32 + "/stream", "/api/users", "/api/tokens"])
def test_every_route_counts(stack: Stack, path: str) -> None:
    with Api(stack.base_url, address=new_address()) as api:
        for _ in range(stack.settings.access.failures_per_minute + 10):
            answer = api.get(path)
        assert answer.status == 429


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


def test_many_at_once_do_not_slip_through(person: Callable[..., Person]) -> None:
    api = person(max_queued=10).api
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: api.post("/api/jobs", {"code": "true", "delay": 3600}).status, range(60)))
    assert (answers.count(200), answers.count(429)) == (10, 50)
    assert api.get("/api/user").data["queued"] == 10


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
