"""Figures about the queue."""

from __future__ import annotations

from typing import Any

import pytest

from shell_service.stats import stats
from tests.database import Transactions
from tests.factories import add_jobs, add_user


def waited(transact: Transactions, user: int | None = None) -> float | None:
    found: float | None = transact(stats, user)["oldest_ready_seconds"]
    return found


def age(transact: Transactions, job_id: Any, **seconds: float) -> None:
    """Let times of a job be so many seconds ago."""
    for name, ago in seconds.items():
        transact.sql(f"UPDATE job SET {name} = now() - make_interval(secs => :ago) WHERE id = :id", ago=ago, id=job_id)


def about(seconds: float) -> Any:
    return pytest.approx(seconds + 2, abs=2.1)  # the machine may be busy


def test_the_queue_is_as_old_as_its_next_job_could_start(transact: Transactions, user: int) -> None:
    assert waited(transact) is waited(transact, user) is None
    (job,) = transact(add_jobs, user)
    age(transact, job, created_at=100)
    assert (waited(transact), waited(transact, user)) == (about(100), about(100))
    age(transact, job, run_at=30)  # a delay is no waiting
    assert waited(transact) == about(30)
    age(transact, job, run_at=-5)
    assert waited(transact) == 0.0
    age(transact, job, run_at=90, modified=80)
    transact.sql("UPDATE job SET attempt = 3, retry_delay = 10")  # due 40 s after the last attempt
    assert waited(transact) == about(40)
    transact.sql("UPDATE job SET attempt = 1000, retry_delay = 86400")
    assert waited(transact) == 0.0


def test_the_oldest_of_all_users_next_jobs_counts(transact: Transactions, user: int) -> None:
    others = [transact(add_user) for _ in range(3)]
    for number, owner in enumerate([user, *others]):
        for job in transact(add_jobs, owner, count=3):
            age(transact, job, created_at=100 * (number + 1))
    assert waited(transact) == about(400)
    assert waited(transact, others[0]) == about(200)
    assert waited(transact, user) == about(100)
