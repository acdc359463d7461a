"""Scripts as those who run them find them."""

from __future__ import annotations

import asyncio

from baselayer.database import Database
from baselayer.errors import ApiError, Conflict, NotAllowed, NotFound
from shell_service import runs, scripts, shares
from shell_service.runs import Wanted
from shell_service.scripts import Found, Name
from tests.database import Transactions
from tests.queue.test_schedules import SETTINGS, caller_of, owner, save


def test_a_look_up_finds_what_each_caller_may_run(transact: Transactions, database_url: str) -> None:
    """Of many that come at once each gets his own, in their order."""
    alice, bob, carol = (owner(transact) for _ in range(3))
    admin = caller_of(transact.scalar('SELECT max(id) + 1 FROM "user"'), "admin")
    tool, old = Name(alice.username, "tool"), Name(bob.username, "old")
    save(transact, alice, code="echo 1")
    save(transact, alice, "other", code="echo other")
    transact(scripts.change, alice, tool, {"code": "echo 2", "message": ""}, None, SETTINGS.scripts)
    save(transact, bob, "old")
    transact(scripts.archive, bob, old, None)
    transact(shares.share, alice, tool, {"user": bob.username, "group": None, "level": "run"})
    transact(shares.share, alice, tool, {"user": carol.username, "group": None, "level": "view"})
    expected = {
        Wanted(alice, tool, None): "echo 2",
        Wanted(alice, tool, 1): "echo 1",
        Wanted(alice, tool, 3): NotFound,
        Wanted(bob, tool, 1): "echo 1",
        Wanted(carol, tool, None): NotAllowed,
        Wanted(admin, tool, 2): "echo 2",
        Wanted(bob, Name(alice.username, "other"), None): NotFound,
        Wanted(alice, Name(alice.username, "other"), None): "echo other",
        Wanted(bob, Name(bob.username, "tool"), None): NotFound,
        Wanted(bob, old, None): Conflict,
        Wanted(carol, old, None): NotFound,
    }
    wanted = [*expected, *reversed(expected)]

    async def look_up() -> list[Found | ApiError]:
        database = Database(database_url, size=1, statement_timeout=20)
        try:
            assert await database.fetch(runs.look_up([])) == []
            assert [*map(said, await database.fetch(runs.look_up(wanted[2:3])))] == [NotFound]
            return await database.fetch(runs.look_up(wanted))
        finally:
            database.close()

    def said(found: Found | ApiError) -> object:
        return found.row.code if isinstance(found, Found) else type(found)

    found = [*map(said, asyncio.run(look_up()))]
    assert found == [*expected.values(), *reversed(expected.values())]
