"""A37: many tokens, many jobs, cancelled and made again: a quota is the user's, however he comes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.client import Api, Person

LATER = {"code": "true", "delay": 3600}


def tokens_of(owner: Person, count: int) -> list[Api]:
    """So many tokens of one user; every second one is a rotated one."""
    found = []
    for number in range(count):
        made = owner.api.post("/api/tokens", {"name": f"t{number}"}).data
        if number % 2:
            made = owner.api.post(f"/api/tokens/{made['id']}/rotate").data
        found.append(owner.api.using(made["token"]))
    return found


def test_jobs_that_wait_are_counted_by_user(person: Callable[..., Person], bob: Person) -> None:
    """Of a hundred at once, over ten tokens, exactly as many are taken as may wait; another's are not hit."""
    owner = person(max_queued=10)
    tokens = tokens_of(owner, 10)
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda n: tokens[n % 10].post("/api/jobs", LATER).status, range(100)))
    assert (statuses.count(200), statuses.count(429)) == (10, 90)
    job = owner.api.get("/api/jobs").data[0]
    for attempt in (
        lambda api: api.post("/api/jobs", LATER),
        lambda api: api.post("/api/jobs?wait=5", {"code": "true"}),
        lambda api: api.post("/api/jobs/batch", {"jobs": [LATER]}),
        lambda api: api.post(f"/api/jobs/{job['id']}/rerun"),
        lambda api: api.post("/api/jobs", LATER, headers={"Idempotency-Key": "fresh"}),
    ):
        assert [attempt(api).status for api in (owner.api, tokens[3])] == [429, 429]
    assert owner.api.get("/api/user").data["queued"] == 10
    assert bob.api.submit("true", wait=30)["status"] == "COMPLETED"
    assert owner.api.post("/api/jobs/cancel", {}).data == {"cancelled": 10}


def test_cancelling_and_making_again_gives_nothing_back(person: Callable[..., Person]) -> None:
    """Jobs of a minute are counted when they come, whatever becomes of them; those refused are not."""
    owner = person(jobs_per_minute=10)
    tokens = tokens_of(owner, 4)
    taken = 0
    for number in range(40):
        answer = tokens[number % 4].post("/api/jobs", LATER)
        if answer.status == 200:
            taken += 1
            tokens[number % 4].post(f"/api/jobs/{answer.data['id']}/cancel").data  # noqa: B018
    assert 10 <= taken <= 20  # a new minute may have begun
    assert owner.api.get("/api/user").data["queued"] == 0
