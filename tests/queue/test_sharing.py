"""Who gets the slots: limits are exact, and what is left is shared by max-min."""

from __future__ import annotations

import random
import threading
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.orm import Session

from shell_service import queue
from shell_service.queue import Result
from tests.database import Transactions
from tests.factories import Enlisted, add_jobs, add_runner, add_user


def finish(transact: Transactions, claims: list[queue.Claim]) -> None:
    results = [Result(claim.job_id, claim.fence, "COMPLETED", "exit code 0", "runner_00") for claim in claims]
    assert all(transact(queue.finish(results).on))


def test_limits_are_exact_under_eight_claimers(transact: Transactions) -> None:
    limits = {transact(add_user, {"max_running": limit}): limit for limit in (1, 2, 3, 5, 8, 13)}
    runners = [transact(add_runner, f"runner_{number:02d}") for number in range(8)]
    for round_ in range(12):
        for user in limits:
            transact(add_jobs, user, 20)
        chooser = random.Random(round_)
        together = threading.Barrier(8)

        def claim_all(runner: Enlisted, count: int, together: threading.Barrier = together) -> list[queue.Claim]:
            together.wait()
            claims: list[queue.Claim] = []
            while more := transact(runner.claim, count):
                claims += more
            return claims

        with ThreadPoolExecutor(8) as threads:
            claimed = list(threads.map(claim_all, runners, [chooser.randint(1, 9) for _ in runners]))
        # Nothing has ended yet: one job too many at any moment would still be here.
        counts = Counter(claim.user_id for claims in claimed for claim in claims)
        assert counts == limits
        for claims in claimed:
            finish(transact, claims)


def test_limits_are_exact_while_jobs_end(transact: Transactions) -> None:
    limits = {transact(add_user, {"max_running": limit}): limit for limit in (1, 2, 3)}
    for user in limits:
        transact(add_jobs, user, 150)
    runners = [transact(add_runner, f"runner_{number:02d}") for number in range(8)]

    def work(runner: Enlisted) -> int:
        done = 0
        while claims := transact(runner.claim, 2):
            with transact.engine.connect() as connection:  # one snapshot, in the middle of everything
                rows = connection.execute(text("SELECT user_id, count(*) FROM running_job GROUP BY 1"))
                assert all(count <= limits[user] for user, count in rows)
            finish(transact, claims)
            done += len(claims)
        return done

    def work_until_empty(runner: Enlisted) -> int:
        done = 0
        while transact.scalar("SELECT EXISTS (SELECT FROM ready_job)"):
            done += work(runner)
        return done

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(work_until_empty, runners)) == 450


def reference(users: list[tuple[int, int, int]], count: int, order: list[int], slots: int) -> Counter[int]:
    """Slots by user as max-min fairness gives them, one at a time: `users` are (running, waiting, limit)."""
    running = [user[0] for user in users]
    given: Counter[int] = Counter()
    for _ in range(count):
        able = [i for i in order if given[i] < users[i][1] and running[i] < users[i][2]]
        if not able:
            break
        chosen = min(able, key=lambda i: running[i])  # of equals the first in turn
        if running[chosen] and slots >= 8 and running[chosen] + 1 > 7 * (slots - sum(running) - 1):
            break  # what is left is for those who run nothing
        running[chosen] += 1
        given[chosen] += 1
    return given


_USERS = 8
user_states = st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(0, 8))


_JOBS_OF_RUNNING = text(
    "INSERT INTO job (id, user_id, name, priority, code, shell, args, env, stdin, timeout, retries, retry_delay,"
    " on_lost, created_at, modified) SELECT job_id, user_id, 'job', 0, '', 'sh', '[]', '{}', '', 1, 0, 0, 'fail',"
    " now(), now() FROM running_job ON CONFLICT DO NOTHING"
)


def fill(session: Session, users: list[tuple[int, int, int]], runner: Enlisted) -> None:
    session.execute(text("TRUNCATE ready_job, running_job, job"))
    for user, (running, waiting, limit) in enumerate(users, 1):
        session.execute(
            text("UPDATE user_limits SET max_running = :limit WHERE user_id = :user"), {"user": user, "limit": limit}
        )
        session.execute(
            text(
                "INSERT INTO running_job (job_id, user_id, ord, attempt, fence, runner_id, incarnation)"
                " SELECT gen_random_uuid(), :user, 0, 1, nextval('fence_seq'), :runner, :incarnation"
                " FROM generate_series(1, :running)"
            ),
            {"user": user, "running": running, "runner": runner.id, "incarnation": runner.incarnation},
        )
        session.execute(_JOBS_OF_RUNNING)
        if waiting:
            add_jobs(session, user, waiting)


@pytest.fixture
def eight(transact: Transactions) -> Any:
    assert [transact(add_user, {"max_running": 1}) for _ in range(_USERS)] == list(range(1, _USERS + 1))
    return transact


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    users=st.lists(user_states, min_size=1, max_size=_USERS),
    count=st.integers(1, 12),
    cursor=st.integers(0, _USERS + 1),
    slots=st.sampled_from([7, 8, 12, 32, 64]),
)
@example(users=[(0, 7, 8)] * 8, count=8, cursor=3, slots=64)
@example(users=[(5, 7, 8), (0, 1, 8), (2, 7, 3)], count=12, cursor=0, slots=32)
@example(users=[(5, 7, 8), (0, 7, 8)], count=12, cursor=0, slots=8)
def test_claims_are_shared_by_max_min(
    eight: Transactions, users: list[tuple[int, int, int]], count: int, cursor: int, slots: int
) -> None:
    runner = eight(add_runner, slots=slots)
    eight(fill, users, runner)
    order = sorted(range(len(users)), key=lambda i: (i + 1 <= cursor, i))
    expected = reference(users, count, order, slots)
    heads = {
        user: [
            row.job_id
            for row in eight.sql("SELECT job_id FROM ready_job WHERE user_id = :u ORDER BY ord, job_id", u=user)
        ]
        for user in range(1, len(users) + 1)
    }
    claims = eight(runner.claim, count, cursor)
    assert Counter(claim.user_id - 1 for claim in claims) == expected
    for user, waiting in heads.items():
        taken = [claim.job_id for claim in claims if claim.user_id == user]
        assert sorted(taken) == sorted(waiting[: len(taken)])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_users_who_run_equally_many_take_turns(transact: Transactions, runner: Enlisted, count: int) -> None:
    users = [transact(add_user) for _ in range(5)]
    for user in users:
        transact(add_jobs, user, 12)
    cursor, served = users[2], []
    for _ in range(30 // count):
        claims = transact(runner.claim, count, cursor)
        finish(transact, claims)
        served += [claim.user_id for claim in claims]
        cursor = claims[-1].user_id
    for start in range(0, len(served), 5):
        assert sorted(served[start : start + 5]) == users


def test_a_flood_keeps_nobody_waiting(transact: Transactions, runner: Enlisted) -> None:
    flooder, other = transact(add_user), transact(add_user)
    transact(add_jobs, flooder, 2000)
    assert len(transact(runner.claim, 20)) == 20
    (job_id,) = transact(add_jobs, other)
    assert transact(runner.claim, 1)[0].job_id == job_id


def test_nobody_has_all_slots(transact: Transactions, runner: Enlisted) -> None:
    users = [transact(add_user) for _ in range(4)]
    running: list[int] = []
    for user in users:  # each comes when those before him have all that they may
        transact(add_jobs, user, 50)
        while claims := transact(runner.claim, 32 - len(running)):
            running += [claim.user_id for claim in claims]
    assert [running.count(user) for user in users] == [28, 3, 1, 0]


def test_jobs_of_a_user_start_in_their_order(transact: Transactions, user: int, runner: Enlisted) -> None:
    ids = [uuid.UUID(str(job_id)) for job_id in transact(add_jobs, user, 28)]
    started = []
    while claims := transact(runner.claim, 7):
        assert {claim.job_id for claim in claims} == set(ids[len(started) : len(started) + len(claims)])
        started += claims
    assert len(started) == 28
