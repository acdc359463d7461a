"""What is kept for a time only, and then removed by the scheduler in small steps."""

from __future__ import annotations

from datetime import timedelta

from shell_service import tokens
from shell_service.scheduler import _forget_keys
from tests.database import Transactions


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


def test_keys_are_forgotten_after_their_time(transact: Transactions, user: int) -> None:
    for key, seconds in {"new": 0, "kept": 80, "old": 120, "older": 1000}.items():
        transact.sql(
            "INSERT INTO idempotency_key (user_id, key, request_digest, job_ids, created_at)"
            " VALUES (:user, :key, '', '{}', now() - make_interval(secs => :seconds))",
            user=user, key=key, seconds=seconds,
        )  # fmt: skip
    transact(_forget_keys, 100.0)
    assert {row.key for row in transact.sql("SELECT key FROM idempotency_key")} == {"new", "kept"}
