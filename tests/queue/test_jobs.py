"""Jobs as their users find them."""

from __future__ import annotations

import asyncio
import uuid

from baselayer.access import Caller
from baselayer.database import Database
from shell_service import jobs, queue
from shell_service.jobs import Filter, Found, Wanted
from tests.database import Transactions
from tests.factories import Enlisted, add_jobs, add_user


def test_what_comes_while_many_are_cancelled_is_not_meant(transact: Transactions, user: int) -> None:
    """So that there is an end, however fast others come."""
    assert transact(jobs.newest) is None
    caller = Caller(user, "somebody", "user", frozenset(), 1, None)
    there = transact(add_jobs, user, 5)
    last = transact(jobs.newest)
    assert last == there[-1]
    cancelled = []
    while found := transact(jobs.matching, caller, Filter(), 2, last):
        transact(queue.cancel, found, "somebody")
        cancelled += found
        transact(add_jobs, user, 2)
        assert len(cancelled) <= 5
    assert cancelled == there


def test_a_look_up_finds_what_each_caller_may_see(
    transact: Transactions, database_url: str, user: int, runner: Enlisted
) -> None:
    """The same as within a session, without one."""
    caller, admin = (Caller(user, "somebody", role, frozenset(), 1, None) for role in ("user", "admin"))
    stranger = Caller(transact(add_user), "other", "user", frozenset(), 2, None)
    ids = transact(add_jobs, user, 3, env={"A": "ä"}, args=["b"], limits={"memory": 1 << 20})
    transact(runner.claim)  # the first of them runs
    wanted = [Wanted(who, job_id) for job_id in [*ids, uuid.uuid4()] for who in (caller, stranger, admin)]

    async def look_up() -> list[Found | None]:
        database = Database(database_url, size=1, statement_timeout=20)
        try:
            assert await database.fetch(jobs.look_up([])) == []
            return await database.fetch(jobs.look_up(wanted))
        finally:
            database.close()

    found, within = asyncio.run(look_up()), transact(jobs.find_many, wanted, jobs.RECORD)
    assert [job and job.job_id for job in found] == [seen for job_id in ids for seen in (job_id, None, job_id)] + 3 * [
        None
    ]
    for one, other in zip(found, within, strict=True):
        if one and other:
            assert one.row._asdict() == other.row._asdict()
