"""What is kept for a time only, and then removed by the scheduler in small steps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from shell_service import tokens, users
from shell_service.scheduler import _forget_keys
from tests.database import Transactions
from tests.factories import add_jobs, add_runner, add_user


def add_token(transact: Transactions, user: int, name: str, days: int | None) -> None:
    """A token that expired so many days ago, or never does."""
    age = None if days is None else timedelta(days=days)
    transact(lambda session: tokens.insert(session, user, name, ["*"], None))
    transact.sql("UPDATE token SET expires_at = now() - CAST(:age AS interval) WHERE name = :name", age=age, name=name)


def names(transact: Transactions) -> set[str]:
    return {row.name for row in transact.sql("SELECT name FROM token")}


def test_expired_tokens_go_after_a_month(transact: Transactions, user: int) -> None:
    for name, days in {"for ever": None, "valid": -1, "ended": 1, "listed": 29, "old": 31, "older": 400}.items():
        add_token(transact, user, name, days)
    assert transact(tokens.remove_expired, limit=1) == 1
    assert transact(tokens.remove_expired) == 1
    assert names(transact) == {"for ever", "valid", "ended", "listed"}
    assert transact(tokens.remove_expired) == 0


def test_jobs_of_a_user_are_cancelled_in_steps(transact: Transactions, user: int) -> None:
    """Claims wait for the rows that a step holds."""
    other = transact(add_user)
    transact(add_jobs, user, 1200)
    transact(add_jobs, other, 3)
    transact(transact(add_runner).claim, 4)  # two of each
    username = transact.scalar('SELECT username FROM "user" WHERE id = :id', id=user)
    steps = [transact(users.cancel_some, username, "admin") for _ in range(4)]
    assert steps == [500, 500, 200, 0]
    left = "SELECT user_id, count(*) FROM job WHERE status IS NULL GROUP BY 1 ORDER BY 1"
    assert transact.sql(left) == [(user, 2), (other, 3)]
    assert transact.scalar("SELECT count(*) FROM running_job WHERE cancel_requested_at IS NOT NULL") == 2


def test_no_job_stays_of_a_user_who_is_not_active(transact: Transactions, user: int) -> None:
    other = transact(add_user)
    for owner in (user, other):
        transact(add_jobs, owner, 2)
        transact(add_jobs, owner, 1, deferred=True, run_at=datetime.now(UTC) + timedelta(days=1))
    transact(transact(add_runner).claim, 2)  # one of each
    transact.sql('UPDATE "user" SET active = false WHERE id = :id', id=user)
    assert transact(users.cancel_of_inactive) == 3
    assert transact(users.cancel_of_inactive) == 0
    left = "SELECT user_id, count(*) FROM job WHERE status IS NULL GROUP BY 1 ORDER BY 1"
    assert transact.sql(left) == [(user, 1), (other, 3)]
    asked = "SELECT user_id, cancelled_by FROM running_job WHERE cancel_requested_at IS NOT NULL"
    assert transact.sql(asked) == [(user, "the service")]


def test_keys_are_forgotten_after_their_time(transact: Transactions, user: int) -> None:
    for key, seconds in {"new": 0, "kept": 80, "old": 120, "older": 1000}.items():
        transact.sql(
            "INSERT INTO idempotency_key (user_id, key, request_digest, job_ids, created_at)"
            " VALUES (:user, :key, '', '{}', now() - make_interval(secs => :seconds))",
            user=user, key=key, seconds=seconds,
        )  # fmt: skip
    transact(_forget_keys, 100.0)
    assert {row.key for row in transact.sql("SELECT key FROM idempotency_key")} == {"new", "kept"}
