"""A web worker killed in the middle of a change: it is done and told of, or neither. One that stops forgets nothing."""

from __future__ import annotations

import signal
from typing import Any

import httpx
import pytest

from tests.factories import add_jobs
from tests.faults.conftest import Worker
from tests.services import Site

# What is asked for, and how one sees that it was done.
CHANGES = {
    "job.submit": ("POST", "/api/jobs", {"code": "true"}, "SELECT count(*) FROM job"),
    "user.create": ("POST", "/api/users", {"username": "new"}, "SELECT count(*) FROM \"user\" WHERE username = 'new'"),
    "user.change": ("PATCH", "/api/users/admin", {"limits": {"max_queued": 9}}, "SELECT count(*) FROM user_limits"),
    "token.create": ("POST", "/api/tokens", {"name": "new"}, "SELECT count(*) FROM token WHERE name = 'new'"),
    "token.rotate": ("POST", "/api/tokens/1/rotate", {}, "SELECT count(*) FROM token WHERE id > 1"),
    "token.revoke": ("DELETE", "/api/tokens/1", None, "SELECT 1 - count(*) FROM token"),
}


def actions(site: Site) -> list[str]:
    """What the API did, in its order."""
    rows = site.transact.sql("SELECT action FROM audit WHERE user_id IS NOT NULL ORDER BY id")
    return [row.action for row in rows]


@pytest.mark.parametrize("action", CHANGES)
@pytest.mark.parametrize("place", ["before", "after"])
def test_killed_around_the_commit(site: Site, action: str, place: str) -> None:
    method, path, body, count = CHANGES[action]
    worker = Worker(site, f"app.{place}_commit=kill")
    with pytest.raises(httpx.TransportError):
        worker.client.request(method, path, **({} if body is None else {"json": body}))
    assert worker.service.wait() == -signal.SIGKILL
    done = place == "after"
    assert site.transact.scalar(count) == done
    assert actions(site) == [action] * done
    site.transact.sql("DELETE FROM ready_job; DELETE FROM job")


def test_killed_after_a_part_of_a_cancel_of_many(site: Site) -> None:
    """What was asked for is told as soon as any of it is done, and once."""
    worker = Worker(site, "app.after_cancel=kill@2")
    site.transact(add_jobs, site.user, 1500)
    with pytest.raises(httpx.TransportError):
        worker.client.post("/api/jobs/cancel", json={"name": "job"})
    assert site.transact.scalar("SELECT count(*) FROM job WHERE status = 'CANCELLED'") == 1000
    assert actions(site) == ["job.cancel"]
    assert site.transact.scalar("SELECT detail FROM audit WHERE action = 'job.cancel'") == {"name": "job"}
    Worker(site).client.post("/api/jobs/cancel", json={}).raise_for_status()


def test_a_worker_that_stops_writes_what_it_refused(site: Site) -> None:
    worker = Worker(site)
    made = worker.client.post("/api/users", json={"username": "carol"})
    assert made.status_code == 200
    made = worker.client.post("/api/tokens", json={"name": "x", "username": "carol", "scopes": ["jobs:read"]})
    headers = {"Authorization": f"token {made.json()['data']['token']}"}
    statuses = {worker.client.get("/api/users", headers=headers).status_code for _ in range(200)}
    statuses |= {worker.client.get("/api/users", headers={"Authorization": ""}).status_code for _ in range(200)}
    assert statuses == {403, 401, 429}
    worker.service.send(signal.SIGTERM)
    assert worker.service.wait() == 0

    def refused(who: str) -> tuple[list[Any], int]:
        rows = site.transact.sql(f"SELECT * FROM audit WHERE outcome <> 'ok' AND {who}")
        single = [row for row in rows if row.outcome != "dropped"]
        return single, sum(row.detail["count"] for row in rows if row.outcome == "dropped")

    one_by_one, counted = refused("username = 'carol'")
    assert {(row.action, row.outcome, row.status) for row in one_by_one} == {("read", "not_allowed", 403)}
    assert 30 <= len(one_by_one) <= 60
    assert len(one_by_one) + counted == 200
    one_by_one, counted = refused("username IS NULL")
    assert {(row.outcome, row.status) for row in one_by_one} == {("not_authenticated", 401)}
    assert 30 <= len(one_by_one) <= 60
    assert len(one_by_one) + counted == 200
