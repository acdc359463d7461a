"""Refusals that nobody waits for: bounded in number, none forgotten, and written as soon as the database can."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy

from baselayer.database import Database
from shell_service import refusals
from shell_service.audit import READ, Entry
from shell_service.refusals import Refusals
from tests.database import EmbeddedServer, Transactions
from tests.waiting import eventually


def play(url: str, act: Callable[[Refusals], Awaitable[None]], processes: int = 1) -> None:
    """Let `act` have refusals written to the database at `url`."""

    async def main() -> None:
        database = Database(url, size=2, statement_timeout=5)
        try:
            await act(Refusals(database, processes))
        finally:
            database.close()

    asyncio.run(main())


def of_user(number: int) -> Entry:
    return Entry(READ, None, number, f"user{number}", 7, "192.0.2.1", "-", "not_found", 404)


def of_stranger(address: str) -> Entry:
    return Entry(READ, address=address, outcome="not_authenticated", status=401)


def written(transact: Transactions) -> list[Any]:
    return transact.sql("SELECT * FROM audit WHERE outcome <> 'dropped' ORDER BY id")


def counted(transact: Transactions) -> dict[str | None, int]:
    """How many are said to have been dropped, by user or address."""
    rows = transact.sql("SELECT * FROM audit WHERE outcome = 'dropped'")
    assert all((row.action, row.detail.keys()) == ("refusals", {"count"}) for row in rows)
    found: dict[str | None, int] = {}
    for row in rows:
        key = row.username or row.address
        found[key] = found.get(key, 0) + row.detail["count"]
    return found


def test_all_are_written_in_groups(transact: Transactions, database_url: str) -> None:
    transact.sql(
        "CREATE TABLE groups (xid xid8); CREATE FUNCTION note_group() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO groups VALUES (pg_current_xact_id()); RETURN NULL; END $$;"
        " CREATE TRIGGER note_group AFTER INSERT ON audit EXECUTE FUNCTION note_group()"
    )

    async def act(log: Refusals) -> None:
        for number in range(300):
            log.note(of_user(number))
        await log.close()

    play(database_url, act)
    assert {row.user_id for row in written(transact)} == set(range(300))
    assert transact.scalar("SELECT count(*) FROM groups") <= 5
    assert counted(transact) == {}


def test_a_flood_by_a_user_is_counted_and_hides_nobody(transact: Transactions, database_url: str) -> None:
    async def act(log: Refusals) -> None:
        for _ in range(5000):
            log.note(of_user(1))
        log.note(of_user(2))
        log.note(of_stranger("192.0.2.9"))
        await log.close()
        await log.close()  # tells nothing twice

    play(database_url, act, processes=2)
    rows = written(transact)
    mine = [row for row in rows if row.user_id == 1]
    assert 30 <= len(mine) <= 32
    assert len(mine) + counted(transact)["user1"] == 5000
    assert {row.user_id for row in rows} == {1, 2, None}


def test_a_flood_by_strangers_is_counted_whoever_they_are(transact: Transactions, database_url: str) -> None:
    async def act(log: Refusals) -> None:
        for number in range(20_000):
            log.note(of_stranger(f"10.{number % 7}.{number // 256 % 256}.{number % 256}"))
        for _ in range(3000):
            log.count(of_stranger("2001:db8::1"))
            log.count(of_stranger("2001:db8::2"))
        log.note(of_user(1))
        await log.close()

    play(database_url, act)
    rows = written(transact)
    assert 600 <= len(rows) <= 620
    assert rows[-1].user_id == 1
    found = counted(transact)
    assert len(found) <= 101  # each address for itself, as long as there are few; then all others together
    assert len(rows) - 1 + sum(found.values()) == 26_000


def test_one_network_is_one_stranger(transact: Transactions, database_url: str) -> None:
    async def act(log: Refusals) -> None:
        for number in range(50):
            log.count(of_stranger(f"2001:db8::{number:x}"))
        await log.close()

    play(database_url, act)
    assert counted(transact) == {"2001:db8::/64": 50}


def test_what_a_database_that_is_away_did_not_take_is_counted() -> None:
    with EmbeddedServer() as server, server.database() as url:

        async def act(log: Refusals) -> None:
            server.stop()
            for _ in range(20):
                log.note(of_user(1))
            await log.close()  # in vain
            server.start()
            await log.close()

        play(url, act)
        transact = Transactions(sqlalchemy.create_engine(url))
        assert written(transact) == []
        assert counted(transact) == {"user1": 20}
        transact.engine.dispose()


def test_an_entry_that_cannot_be_written_keeps_none_back(transact: Transactions, database_url: str) -> None:
    async def act(log: Refusals) -> None:
        log.note(of_user(1))
        await log.close()
        for entry in (of_user(2), Entry(READ, "x" * 999, 3, "user3"), of_user(4)):
            log.note(entry)
        await log.close()

    play(database_url, act)
    assert [row.user_id for row in written(transact)] == [1, 2, 4]
    assert counted(transact) == {"user3": 1}


def test_what_was_counted_is_written_after_a_while(
    transact: Transactions, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "_COUNTED_SECONDS", 0.1)

    async def act(log: Refusals) -> None:
        task = asyncio.create_task(log.run())
        log.count(of_user(1))
        await asyncio.to_thread(eventually, lambda: counted(transact) == {"user1": 1})
        task.cancel()

    play(database_url, act)
