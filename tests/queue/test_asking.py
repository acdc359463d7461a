"""What not everybody may have, where jobs are stored: whatever happens meanwhile, what is stored was allowed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from baselayer.errors import Conflict, InvalidRequest, NotAllowed
from shell_service import submissions, users
from shell_service.submissions import Stored, Submission
from tests.database import Transactions
from tests.factories import JOB_LIMITS, LIMITS, add_runner, add_user, new_jobs
from tests.queue.interleaving import Transaction
from tests.waiting import eventually


def submission(user: int, **fields: Any) -> Submission:
    return Submission(user, new_jobs(1, user_id=user, **fields))


def limits_of(transact: Transactions, stored: Any) -> tuple[dict[str, float], float]:
    assert isinstance(stored, Stored), stored
    (row,) = transact.sql("SELECT limits, timeout FROM job WHERE id = :id", id=stored.ids[0])
    assert {**row.limits, "timeout": row.timeout} == {**stored.limits, **row.limits, "timeout": row.timeout}
    return row.limits, row.timeout


def test_neighbours_in_one_transaction_get_what_is_theirs(transact: Transactions) -> None:
    plain = transact(add_user)
    own = transact(add_user, {"defaults": {"memory": 1 << 31, "timeout": 7}, "maxima": {"disk": 1 << 20}})
    strict = transact(add_user, {"maxima": {"processes": 5}})
    items = [
        submission(plain, timeout=None),
        submission(own, timeout=None),
        submission(strict, timeout=5.0, limits={"processes": 6}),
        submission(own, timeout=9.0, limits={"disk": 1 << 19}),
        submission(strict, timeout=None),
        submission(plain, timeout=None, limits={"cpu": 1}),
    ]
    stored = transact(submissions.submit(items, LIMITS).on)
    assert isinstance(stored.pop(2), InvalidRequest)
    theirs = {**JOB_LIMITS, "memory": 1 << 31, "disk": 1 << 20}
    assert [limits_of(transact, item) for item in stored] == [
        (JOB_LIMITS, 3600),
        (theirs, 7),
        ({**theirs, "disk": 1 << 19}, 9),
        ({**JOB_LIMITS, "processes": 5}, 3600),
        ({**JOB_LIMITS, "cpu": 1}, 3600),
    ]


@pytest.mark.parametrize(
    ("runners", "reason"),
    [
        ([], None),  # one may come that can
        ([{}], None),
        ([{"network": None}], None),
        ([{"network": "passt is not installed"}], "passt is not installed"),
        ([{"network": "passt is not installed"}, {"network": None}], None),
    ],
)
def test_the_network_where_a_runner_can_give_it(
    transact: Transactions, user: int, runners: list[Any], reason: str | None
) -> None:
    for number, facts in enumerate(runners):
        transact(add_runner, f"runner_{number:02}")
        values = {"facts": json.dumps(facts), "name": f"runner_{number:02}"}
        transact.sql("UPDATE runner SET facts = CAST(:facts AS jsonb) WHERE name = :name", **values)
    transact(add_runner, "gone")
    transact.sql("UPDATE runner SET state = 'gone', facts = jsonb_build_object('network', NULL) WHERE name = 'gone'")
    (refused,) = transact(submissions.submit([submission(user, network=True)], LIMITS).on)
    assert isinstance(refused, NotAllowed)
    transact.sql("INSERT INTO user_limits (user_id, network) VALUES (:user, true)", user=user)
    (found,) = transact(submissions.submit([submission(user, network=True)], LIMITS).on)
    if reason is None:
        assert transact.scalar("SELECT network FROM job WHERE id = :id", id=found.ids[0])
    else:
        assert isinstance(found, Conflict)
        assert reason in found.message
        assert transact.scalar("SELECT count(*) FROM job") == 0


def test_what_is_refused_leaves_its_key_free(transact: Transactions, user: int) -> None:
    jobs = new_jobs(1, user_id=user, limits={"memory": 1 << 40})
    (refused,) = transact(submissions.submit([Submission(user, jobs, "key", b"a")], LIMITS).on)
    assert isinstance(refused, InvalidRequest)
    assert transact.scalar("SELECT count(*) FROM idempotency_key") == 0
    transact.sql(
        "INSERT INTO user_limits (user_id, maxima) VALUES (:user, jsonb_build_object('memory', 1e13))", user=user
    )
    (stored,) = transact(submissions.submit([Submission(user, jobs, "key", b"a")], LIMITS).on)
    assert isinstance(stored, Stored)
    transact.sql("DELETE FROM user_limits")  # what was taken once is not looked at again
    assert transact(submissions.submit([Submission(user, jobs, "key", b"a")], LIMITS).on)[0].ids == stored.ids  # type: ignore[union-attr]


def test_limits_are_lowered_while_a_job_is_submitted(transact: Transactions, user: int) -> None:
    """Once it is said that they are lower, no job is stored that was looked at before."""
    jobs = new_jobs(1, user_id=user, limits={"memory": 1 << 30})
    submit = submissions.submit([Submission(user, jobs, "key", b"a")], LIMITS).on

    def lower(session: Session) -> None:
        submissions.lock_user(session, user)
        users.set_limits(session, user, {"job": {"max": {"memory": 1 << 29}}}, LIMITS)

    with transact.engine.connect() as other:  # who holds up the submission behind its look at the limits
        other.execute(text("INSERT INTO idempotency_key VALUES (:user, 'key', '', '{}', now())"), {"user": user})
        submitting, lowering = Transaction(transact.engine, submit), Transaction(transact.engine, lower)
        submitting.start()
        eventually(lambda: waits_for_lock(transact, submitting.pid))
        lowering.start()
        eventually(lambda: not lowering.is_alive() or waits_for_lock(transact, lowering.pid))
        assert lowering.is_alive()
        other.rollback()
    (stored,) = submitting.proceed()
    assert isinstance(stored, Stored)
    lowering.proceed()
    (refused,) = transact(submissions.submit([submission(user, limits={"memory": 1 << 30})], LIMITS).on)
    assert isinstance(refused, InvalidRequest)


def waits_for_lock(transact: Transactions, pid: int) -> bool:
    rows = transact.sql("SELECT wait_event_type = 'Lock' AS waits FROM pg_stat_activity WHERE pid = :pid", pid=pid)
    return bool(rows and rows[0].waits)
