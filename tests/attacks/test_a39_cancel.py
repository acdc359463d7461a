"""A39: a hundred cancels at once, of what waits, starts, runs, ends and is run again: one end each, nothing left."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

from tests.client import Person
from tests.services import processes
from tests.waiting import eventually

FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"}


def test_a_hundred_at_once(person: Callable[..., Person]) -> None:
    """Of a job that ignores them and has children: all are answered alike, and it ends once."""
    owner, mark = person(), "86429.5"
    job = owner.api.submit(f"trap '' TERM; sh -mc 'sleep {mark} &' & sleep {mark} & wait; sleep {mark}")
    eventually(lambda: len(processes(mark)) >= 2)
    with ThreadPoolExecutor(32) as pool:
        seen = list(pool.map(lambda _: owner.api.post(f"/api/jobs/{job['id']}/cancel").data["status"], range(100)))
    assert set(seen) <= {"RUNNING", "CANCELLED"}
    final = ended(owner, job["id"])
    assert (final["status"], final["cancelled_by"], final["attempt"]) == ("CANCELLED", owner.username, 1)
    assert processes(mark) == []
    assert owner.api.post(f"/api/jobs/{job['id']}/cancel").data == final


def test_at_every_moment(person: Callable[..., Person]) -> None:
    """Jobs that end by themselves at about then, each cancelled and run again by several at once."""
    owner, chance = person(max_running=8), Random(1)
    jobs = owner.api.post("/api/jobs/batch", {"jobs": [{"code": f"sleep 0.0{n % 10}"} for n in range(60)]}).data

    def act(job: dict[str, Any]) -> list[str]:
        cancel, rerun = (f"/api/jobs/{job['id']}/{name}" for name in ("cancel", "rerun"))
        acts = [lambda: owner.api.post(cancel).data] * 4 + [lambda: owner.api.job(job["id"])] * 2
        acts += [lambda: owner.api.post(rerun).data]
        chance.shuffle(acts)
        records = [act() for act in acts]
        return [record["status"] for record in records if record["id"] == job["id"]]

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(act, jobs))
    for job, statuses in zip(jobs, seen, strict=True):
        final = ended(owner, job["id"])
        assert {status for status in statuses if status in FINAL} <= {final["status"]}
        assert (final["cancelled_by"] is None) == (final["status"] == "COMPLETED")
    owner.api.post("/api/jobs/cancel", {}).data  # noqa: B018
    everything = eventually(lambda: (found := all_of(owner)) and all(one["finished_at"] for one in found) and found)
    assert len(everything) == 120
    assert {one["status"] for one in everything} <= {"COMPLETED", "CANCELLED"}
    before = {one["id"]: one["status"] for one in everything}
    assert {one["id"]: one["status"] for one in all_of(owner)} == before
    assert (owner.api.get("/api/user").data["running"], owner.api.get("/api/user").data["queued"]) == (0, 0)


def all_of(owner: Person) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = owner.api.get("/api/jobs?limit=1000").data
    return found


def ended(owner: Person, job_id: str) -> dict[str, Any]:
    final: dict[str, Any] = eventually(lambda: (seen := owner.api.job(job_id))["finished_at"] and seen)
    return final
