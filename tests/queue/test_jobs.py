"""Jobs as their users find them."""

from __future__ import annotations

from baselayer.access import Caller
from shell_service import jobs, queue
from shell_service.jobs import Filter
from tests.database import Transactions
from tests.factories import add_jobs


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
