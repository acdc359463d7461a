"""Many requests at once: one transaction for all, and to each his own answer."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import text
from sqlalchemy.orm import Session

from baselayer.batch import Batcher
from baselayer.database import Database, DatabaseUnavailable
from baselayer.errors import IdempotencyMismatch, LimitReached, Unavailable
from shell_service import queue, submissions
from shell_service.queue import Fenced
from shell_service.submissions import Stored, Submission
from tests.database import Transactions
from tests.factories import LIMITS, add_jobs, add_runner, add_user, new_jobs
from tests.waiting import eventually


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url, size=4, statement_timeout=5.0)
    yield database
    database.close()


def submission(user: int, key: str | None = None, digest: bytes = b"", **fields: Any) -> Submission:
    return Submission(user, new_jobs(1, user_id=user, **fields), key, digest)


def submitting(database: Database, batches: list[int] | None = None) -> Batcher[Submission, Stored]:
    """A batcher as web workers have it; `batches` gets the size of each batch."""

    async def submit(items: list[Submission]) -> list[Stored | Exception]:
        if batches is not None:
            batches.append(len(items))
        return await database.fetch(submissions.submit(items, LIMITS))

    return Batcher(submit, max_items=200)


def gather(make: Callable[[], list[Awaitable[Any]]]) -> list[Any]:
    async def all_of() -> list[Any]:
        return await asyncio.gather(*make(), return_exceptions=True)

    return asyncio.run(all_of())


def in_workers(url: str, items: list[Submission], workers: int = 4) -> list[Any]:
    """Results of submitting all at once, spread over as many event loops as there are web workers."""

    def work(share: list[Submission]) -> list[Any]:
        async def submit() -> list[Any]:
            database = Database(url, size=2, statement_timeout=5.0, wait=10.0)
            batcher = submitting(database)
            try:
                return await asyncio.gather(*map(batcher.put, share), return_exceptions=True)
            finally:
                database.close()

        return asyncio.run(submit())

    with ThreadPoolExecutor(workers) as threads:
        shares = threads.map(work, [items[worker::workers] for worker in range(workers)])
        return [result for share in shares for result in share]


def test_many_wait_for_few_transactions(database: Database, user: int, transact: Transactions) -> None:
    batches: list[int] = []

    def make() -> list[Awaitable[Any]]:
        batcher = submitting(database, batches)
        return [batcher.put(submission(user)) for _ in range(500)]

    results = gather(make)
    assert all(isinstance(result, Stored) for result in results)
    assert len({result.ids[0] for result in results}) == 500 == transact.scalar("SELECT count(*) FROM job")
    assert sum(batches) == 500
    assert len(batches) <= 4


def test_a_bad_item_does_not_fail_its_neighbours(database: Database, user: int, transact: Transactions) -> None:
    def make() -> list[Awaitable[Any]]:
        batcher = submitting(database)
        items = [submission(user, code="\0" if number % 10 == 3 else "true") for number in range(30)]
        return [batcher.put(item) for item in items]

    results = gather(make)
    bad = [isinstance(result, Exception) for result in results]
    assert bad == [number % 10 == 3 for number in range(30)]
    assert transact.scalar("SELECT count(*) FROM job") == 27


def test_each_gets_his_own_refusal(database: Database, user: int, transact: Transactions) -> None:
    full = transact(add_user, {"max_queued": 0})

    def make() -> list[Awaitable[Any]]:
        batcher = submitting(database)
        return [batcher.put(submission(who)) for who in (user, full, user)]

    first, second, third = gather(make)
    assert isinstance(second, LimitReached)
    assert isinstance(first, Stored)
    assert isinstance(third, Stored)


def test_fifty_with_the_same_key_make_one_job(database_url: str, user: int, transact: Transactions) -> None:
    results = in_workers(database_url, [submission(user, "key", b"a") for _ in range(50)])
    assert len({str(result) for result in results}) == 1, results
    assert transact.scalar("SELECT count(*) FROM job") == 1


def test_the_same_key_with_another_body_is_refused(database_url: str, user: int, transact: Transactions) -> None:
    results = in_workers(database_url, [submission(user, "key", bytes([65 + number % 2])) for number in range(50)])
    assert sum(isinstance(result, IdempotencyMismatch) for result in results) == 25
    assert len({str(result) for result in results if isinstance(result, Stored)}) == 1
    assert transact.scalar("SELECT count(*) FROM job") == 1


def test_submissions_of_many_users_do_not_block_each_other(database_url: str, transact: Transactions) -> None:
    users = [transact(add_user) for _ in range(10)]
    items = [submission(users[number % 10], f"key{number % 3}", b"a") for number in range(200)]
    results = in_workers(database_url, items)
    assert all(isinstance(result, Stored) for result in results), results
    assert transact.scalar("SELECT count(*) FROM job") == 30


def test_batches_and_single_submissions_store_the_same(transact: Transactions, user: int) -> None:
    items = [submission(user, f"key{number % 5}", b"a", priority=number % 3) for number in range(20)]
    other = transact(add_user)
    same = [dataclasses.replace(item, user_id=other, jobs=[
        dataclasses.replace(job, id=uuid.UUID(int=job.id.int + 1), user_id=other) for job in item.jobs
    ]) for item in items]  # fmt: skip
    together = transact(submissions.submit(items, LIMITS).on)
    alone = [transact(submissions.submit([item], LIMITS).on)[0] for item in same]
    ids_of = [[job_id.int + 1 for job_id in item.ids] for item in together if isinstance(item, Stored)]
    assert ids_of == [[job_id.int for job_id in item.ids] for item in alone if isinstance(item, Stored)]
    stored = (
        "SELECT array_agg((priority, ord) ORDER BY j.id)::text FROM job j JOIN ready_job ON job_id = id"
        " WHERE j.user_id = :user"
    )
    assert transact.scalar(stored, user=user) == transact.scalar(stored, user=other)


# -- what is nobody's fault ------------------------------------------------------------------------------------------


def test_a_deadlock_is_nobodys_error(database_url: str, user: int, transact: Transactions) -> None:
    runner = transact(add_runner)
    transact(add_jobs, user, 2)
    attempts = [Fenced(claim.job_id, claim.fence) for claim in transact(runner.claim, 2)]
    together = threading.Barrier(2)

    def mark(order: list[Fenced]) -> list[list[bool]]:
        met = False

        def one_by_one(session: Session) -> list[bool]:
            nonlocal met
            first = queue.mark_started(order[:1]).on(session)
            if not met:  # the one that is rolled back is tried again without its counterpart
                met = True
                together.wait(10)
            return first + queue.mark_started(order[1:]).on(session)

        database = Database(database_url, size=1, statement_timeout=10.0)
        try:
            return asyncio.run(run(database, one_by_one))
        finally:
            database.close()

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(mark, [attempts, attempts[::-1]]))
    assert results == [[True, True], [True, True]]
    # Counted a moment later, and more than once where the second try meets the other again.
    counted = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    eventually(lambda: transact.scalar(counted) >= 1)


async def run(database: Database, act: Callable[[Session], Any]) -> Any:
    return await database.run(act)


@pytest.mark.parametrize(
    "statement",
    ["SET LOCAL statement_timeout = 50; SELECT pg_sleep(30)", "SET LOCAL lock_timeout = 50; LOCK TABLE job"],
)
def test_waiting_too_long_is_unavailability(database: Database, transact: Transactions, statement: str) -> None:
    with transact.engine.begin() as connection:
        connection.execute(text("LOCK TABLE job IN ACCESS SHARE MODE"))
        with pytest.raises(Unavailable):
            asyncio.run(run(database, lambda session: session.execute(text(statement))))


def test_a_mistake_of_ours_is_not_unavailability(database: Database) -> None:
    with pytest.raises(sqlalchemy.exc.DBAPIError):
        asyncio.run(run(database, lambda session: session.execute(text("SELECT 1 / 0"))))


def test_when_the_database_is_away_all_are_told(database: Database, user: int) -> None:
    async def away(items: list[Submission]) -> list[Stored | Exception]:
        raise DatabaseUnavailable

    def make() -> list[Awaitable[Any]]:
        batcher: Batcher[Submission, Stored] = Batcher(away)
        return [batcher.put(submission(user)) for _ in range(5)]

    assert all(isinstance(result, DatabaseUnavailable) for result in gather(make))


def test_a_queue_has_an_end(database: Database, user: int) -> None:
    def make() -> list[Awaitable[Any]]:
        async def submit(items: list[Submission]) -> list[Stored | Exception]:
            return await database.fetch(submissions.submit(items, LIMITS))

        batcher: Batcher[Submission, Stored] = Batcher(submit, max_items=5, max_queue=10)
        return [batcher.put(submission(user)) for _ in range(20)]

    results = gather(make)
    assert 5 <= sum(isinstance(result, Unavailable) for result in results) <= 10
    assert all(isinstance(result, Stored | Unavailable) for result in results)


def test_whoever_has_gone_does_not_hold_up_the_others(database: Database, user: int, transact: Transactions) -> None:
    async def leave_early() -> Stored:
        batcher = submitting(database)
        leaver = asyncio.create_task(batcher.put(submission(user)))
        stayer = asyncio.create_task(batcher.put(submission(user)))
        await asyncio.sleep(0)
        leaver.cancel()
        return await stayer

    assert len(asyncio.run(leave_early()).ids) == 1
    assert transact.scalar("SELECT count(*) FROM job") == 2
