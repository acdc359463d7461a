"""Queries that the event loop asks itself: their answers, and what becomes of those that get none."""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import psycopg2
import psycopg2.errors
import pytest
import sqlalchemy

from baselayer.database import Database, DatabaseUnavailable, OutcomeUnknown, Overloaded
from baselayer.query import Query, Rows
from tests.database import EmbeddedServer, Transactions
from tests.factories import add_jobs, add_user
from tests.waiting import eventually


def rows(found: Rows) -> list[tuple[Any, ...]]:
    return list(found)


def query(sql: str, **parameters: Any) -> Query[list[tuple[Any, ...]]]:
    return Query(sql, parameters, rows)


SLEEP = query("SELECT pg_sleep(60)")
SLEEPING = "SELECT pid FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"
BACKEND = query("SELECT pg_backend_pid()")


def connected(transact: Transactions) -> list[int]:
    """The processes that serve the connections of `use`."""
    return [pid for (pid,) in transact.sql("SELECT pid FROM pg_stat_activity WHERE application_name = 'fetching'")]


@pytest.fixture
def use(database_url: str, transact: Transactions) -> Iterator[Callable[..., Any]]:
    """Runs a coroutine function with a database, of which no connection may be left."""

    def run(act: Callable[[Database], Coroutine[Any, Any, Any]], url: str = database_url, **options: Any) -> Any:
        async def main() -> Any:
            named = sqlalchemy.make_url(url).update_query_dict({"application_name": "fetching"})
            database = Database(
                named.render_as_string(hide_password=False), size=1, **{"statement_timeout": 20.0, **options}
            )
            try:
                return await act(database)
            finally:
                database.close()

        return asyncio.run(main())

    yield run
    eventually(lambda: not connected(transact))


def test_rows_are_read_by_the_query(use: Any) -> None:
    double = Query(
        "SELECT n * 2 FROM generate_series(1, %(n)s) AS n", {"n": 3}, lambda found: [row[0] for row in found]
    )
    assert use(lambda database: database.fetch(double)) == [2, 4, 6]


def test_what_is_large_goes_both_ways(use: Any) -> None:
    text = "ä'\\%" * 2_000_000
    assert use(lambda database: database.fetch(query("SELECT %(text)s", text=text))) == [(text,)]


def test_a_connection_is_used_again(use: Any) -> None:
    async def act(database: Database) -> Any:
        return [await database.fetch(BACKEND) for _ in range(3)]

    assert len({found[0][0] for found in use(act)}) == 1


def test_what_is_kept_is_planned_once(use: Any, transact: Transactions) -> None:
    """By each connection, and for whatever it is asked."""

    def count(ids: list[uuid.UUID], most: int) -> Query[list[tuple[Any, ...]]]:
        sql = "SELECT count(*) FROM job WHERE id = ANY(CAST(%(ids)s AS uuid[])) AND priority <= %(most)s"
        return Query(sql, {"ids": ids, "most": most}, rows, kept=True)

    user = transact(add_user)
    ids = transact(add_jobs, user, 3, priority=1)

    async def act(database: Database) -> None:
        assert [await database.fetch(count(wanted, most)) for wanted, most in ((ids[1:], 1), (ids, 0), ([], 1))] == [
            [(2,)], [(0,)], [(0,)]
        ]  # fmt: skip
        plans = query("SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement ~ 'count'")
        assert await database.fetch(plans) == [(3, 0)]
        ((pid,),) = await database.fetch(BACKEND)
        transact.sql("SELECT pg_terminate_backend(:pid)", pid=pid)
        await asyncio.to_thread(eventually, lambda: pid not in connected(transact))
        assert await database.fetch(count(ids, 1)) == [(3,)]

    use(act)


def test_many_at_once_share_few_connections(use: Any, transact: Transactions) -> None:
    async def act(database: Database) -> Any:
        asked = [database.fetch(query("SELECT %(n)s, pg_backend_pid()", n=n)) for n in range(100)]
        return [found[0] for found in await asyncio.gather(*asked)]

    found = use(act)
    assert [number for number, _ in found] == list(range(100)), "each gets the answer to his own"
    assert len({pid for _, pid in found}) <= 3


def test_a_mistake_of_ours_is_told_as_it_is_and_leaves_the_connection_usable(use: Any) -> None:
    async def act(database: Database) -> Any:
        first = await database.fetch(BACKEND)
        with pytest.raises(psycopg2.errors.DivisionByZero):
            await database.fetch(query("SELECT 1 / 0"))
        with pytest.raises(psycopg2.ProgrammingError):  # found out before anything is sent
            await database.fetch(query("SELECT %(what)s", what=object()))
        return first == await database.fetch(BACKEND), await database.fetch(query("SELECT 1"))

    assert use(act)[1] == [(1,)]


@pytest.mark.parametrize("how", ["statement_timeout", "lock_timeout"])
def test_waiting_too_long_in_the_server(use: Any, transact: Transactions, how: str) -> None:
    async def act(database: Database) -> None:
        with pytest.raises(Overloaded):
            await database.fetch(SLEEP if how == "statement_timeout" else query("SELECT pg_advisory_lock(1)"))
        assert await database.fetch(query("SELECT 1")) == [(1,)]

    with transact.engine.begin() as connection:
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(1)")
        use(act, statement_timeout=0.2)


@pytest.mark.parametrize(("stores", "told"), [(False, DatabaseUnavailable), (True, OutcomeUnknown)])
def test_the_server_goes_while_it_is_asked(use: Any, stores: bool, told: type[Exception]) -> None:
    with EmbeddedServer() as server, server.database() as url:
        transact = Transactions(sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool))

        async def act(database: Database) -> None:
            asked = asyncio.create_task(database.fetch(SLEEP, stores))
            await asyncio.to_thread(eventually, lambda: transact.sql(SLEEPING))
            server.stop(signal.SIGQUIT)  # which undoes what is under way and says nothing
            with pytest.raises(told):
                await asked
            with pytest.raises(DatabaseUnavailable):  # nobody is there to connect to: nothing was stored
                await database.fetch(SLEEP, stores)
            server.start()
            assert await database.fetch(query("SELECT 1")) == [(1,)]

        use(act, url)


def test_a_goodbye_while_nothing_is_asked_is_heard(use: Any, transact: Transactions) -> None:
    async def act(database: Database) -> None:
        ((pid,),) = await database.fetch(BACKEND)
        transact.sql("SELECT pg_terminate_backend(:pid)", pid=pid)
        await asyncio.to_thread(
            eventually, lambda: not transact.sql("SELECT FROM pg_stat_activity WHERE pid = :pid", pid=pid)
        )
        ((other,),) = await database.fetch(BACKEND)
        assert other != pid

    use(act)


def test_whoever_stops_waiting_leaves_no_answer_to_others(use: Any, transact: Transactions) -> None:
    async def act(database: Database) -> None:
        asked = [asyncio.create_task(database.fetch(SLEEP)) for _ in range(2)]
        await asyncio.to_thread(eventually, lambda: len(transact.sql(SLEEPING)) == 2)
        for one in asked:
            one.cancel()
        assert await database.fetch(query("SELECT 7")) == [(7,)]
        for (pid,) in transact.sql(SLEEPING):
            transact.sql("SELECT pg_terminate_backend(:pid)", pid=pid)

    use(act)


def test_a_server_that_says_nothing_is_not_waited_for(use: Any) -> None:
    async def act(database: Database) -> None:
        ((pid,),) = await database.fetch(BACKEND)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(OutcomeUnknown):
                await database.fetch(query("SELECT 2"), stores=True)
            assert await database.fetch(query("SELECT 3")) == [(3,)]
        finally:
            os.kill(pid, signal.SIGCONT)

    use(act, statement_timeout=0.5, wait=0.5)


def test_a_deadlock_is_tried_again(use: Any, transact: Transactions) -> None:
    transact.sql("CREATE TABLE counter (id int PRIMARY KEY, n int)")
    transact.sql("INSERT INTO counter VALUES (1, 0), (2, 0)")
    transact.sql("CREATE SEQUENCE arrival")  # not undone with a transaction: the second try need not wait
    transact.sql(
        "CREATE FUNCTION both_of(a int, b int) RETURNS void LANGUAGE plpgsql AS $$ BEGIN"
        " UPDATE counter SET n = n + 1 WHERE id = a; PERFORM nextval('arrival');"
        " WHILE (SELECT last_value FROM arrival) < 2 LOOP PERFORM pg_sleep(0.01); END LOOP;"
        " UPDATE counter SET n = n + 1 WHERE id = b; END $$"
    )

    async def act(database: Database) -> None:
        await asyncio.gather(*(database.fetch(query("SELECT both_of(%(a)s, %(b)s)", a=a, b=3 - a)) for a in (1, 2)))

    use(act)
    assert transact.sql("SELECT n FROM counter") == [(2,), (2,)]
    eventually(
        lambda: transact.scalar("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") >= 1
    )
