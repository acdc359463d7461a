"""Database access that never holds up the event loop.

`Database.run` gives a plain function a session in a thread of a small pool and returns what it returns: plain data,
never a live row. Threads and connections are the same number, so nobody waits for a connection inside a thread.
`Database.fetch` asks a single query without a thread, over connections that the event loop reads itself: for what is
asked most often.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

import orjson
import psycopg2
import sqlalchemy
from sqlalchemy import exc
from sqlalchemy.orm import Session

from baselayer.connection import CONNECT_OPTIONS, Connection, dsn_of
from baselayer.errors import Unavailable
from baselayer.query import Query
from baselayer.turns import Turns

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)

#: For whom the database is asked: those who ask for much wait for one another, and not others for them.
on_behalf_of: contextvars.ContextVar[Hashable] = contextvars.ContextVar("on_behalf_of", default=None)


class DatabaseUnavailable(Unavailable):
    """The database is not reachable now; nothing was stored. Try again in a moment."""

    code = "database_unavailable"


class OutcomeUnknown(Unavailable):
    """The database went away while it was storing this. Send the request again with the same Idempotency-Key."""

    code = "outcome_unknown"


class Overloaded(Unavailable):
    """Too many requests are waiting for the database; try again in a moment."""

    code = "overloaded"


# Deadlock and serialisation failure: the server has undone everything, so the same again is safe.
_ROLLED_BACK = ("40P01", "40001")
# Statement and lock timeouts.
_TOO_SLOW = ("57014", "55P03")
_TRIES = 4
_MOST_WAITING = 64  # for each thread, on behalf of one; and four times as many of all
# Of what `fetch` asks: plans are kept while tables grow from nothing, and only walks along an index are right at both
# ends of that.
_KEPT_PLANS = "plan_cache_mode=force_generic_plan", "enable_seqscan=off", "enable_hashjoin=off", "enable_mergejoin=off"
_DIRECT = 3  # connections of `fetch`: one statement is short, and most of a process's are gathered into few


def _state(error: BaseException | None) -> str:
    """PostgreSQL's code of an error, or nothing where the server did not get to give one."""
    if isinstance(error, exc.DBAPIError):
        error = error.orig
    return getattr(error, "pgcode", None) or ""


def is_disconnect(error: BaseException) -> bool:
    """Whether `error` says that the connection or the server is gone, rather than that the statement is wrong."""
    if not isinstance(error, exc.DBAPIError | psycopg2.Error):
        return False
    state = _state(error)
    # Class 08: connection; 53: no connections, memory or disk left; 57P0x: shutdown, crash, starting up; 58: the
    # server's own system fails it; 25006: read-only after a fail-over.
    return (
        getattr(error, "connection_invalidated", False)
        or state[:4] == "57P0"
        or state[:2] in ("08", "53", "58")
        or state == "25006"
        or (isinstance(error, exc.OperationalError | psycopg2.OperationalError) and not state)
    )


def _warn(error: BaseException | None) -> None:
    logger.warning("database unavailable: %s", str(error).strip().splitlines()[:1])


class Database:
    """One engine and as many threads as it has connections."""

    def __init__(self, url: str, *, size: int, statement_timeout: float, wait: float = 2.0) -> None:
        """`url` of SQLAlchemy's form; `size` connections; `statement_timeout` and `wait` (for a thread) in seconds."""
        options = f"-c statement_timeout={int(statement_timeout * 1000)} -c lock_timeout={int(statement_timeout * 500)}"
        options += " -c idle_in_transaction_session_timeout=10000 -c timezone=UTC -c jit=off"
        self.url = url
        self.engine = sqlalchemy.create_engine(
            url,
            pool_size=size,
            max_overflow=0,
            pool_timeout=wait,
            pool_recycle=1800,
            json_deserializer=orjson.loads,
            hide_parameters=True,  # they are in what is logged of an error, and may hold secrets of users
            connect_args={**CONNECT_OPTIONS, "options": options},
        )
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="database")
        self._size = size
        self._wait = wait
        self._turns = Turns(size)
        self._waiting = 0
        self._dsn = dsn_of(url)
        self._options = {**CONNECT_OPTIONS, "options": " -c ".join((options, *_KEPT_PLANS))}
        self._patience = statement_timeout + wait  # seconds: the server, if it lives, gives up sooner
        self._direct = asyncio.Semaphore(_DIRECT)
        self._idle: list[Connection] = []

    async def fetch(self, query: Query[R], stores: bool = False) -> R:
        """Ask one query, a transaction of its own. Whether it `stores` something that must not be stored twice.

        Raises as `run` does; for one that stores, `OutcomeUnknown` when the server goes away after it was asked.
        """
        async with self._direct:  # bounded by what those before may take, and they are few: see _DIRECT
            for _ in range(_TRIES - 1):
                try:
                    return query.read(await self._fetch(query, stores))
                except psycopg2.Error as error:
                    if _state(error) not in _ROLLED_BACK:
                        raise
            return query.read(await self._fetch(query, stores))

    async def _fetch(self, query: Query[Any], stores: bool) -> list[tuple[Any, ...]]:
        connection = await self._connection()
        answered, usable = False, True
        try:
            async with asyncio.timeout(self._patience):
                rows = await connection.fetch(query.sql, query.parameters, query.kept)
            answered = True
            return rows
        except TimeoutError:
            raise (OutcomeUnknown if stores else Overloaded) from None
        except psycopg2.Error as error:
            answered = bool(_state(error))
            usable = not query.kept  # else what the connection keeps may be what is wrong
            if _state(error) in _TOO_SLOW:
                raise Overloaded("The database took too long; try again in a moment.") from error
            if not (is_disconnect(error) or connection.broken):
                raise
            _warn(error)
            raise (OutcomeUnknown if stores and not answered else DatabaseUnavailable) from error
        finally:
            if answered and usable and not connection.broken:
                self._idle.append(connection)
            else:  # its answer may still come, and would be taken for that to another statement
                connection.close()

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.broken:
                return connection
        try:
            return await Connection.open(self._dsn, self._options)
        except psycopg2.Error as error:
            _warn(error)
            raise DatabaseUnavailable from error

    async def ask(self, function: Callable[Concatenate[Session, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """As `run`, but each statement is a transaction by itself: one way to the server and back instead of three.

        For functions of a single statement, or of several that need not see or do one thing.
        """
        return await self._run(True, function, *args, **kwargs)

    async def run(self, function: Callable[Concatenate[Session, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call ``function(session, *args)`` in one transaction, in a thread; return what it returns.

        Raises `Overloaded` when too many wait already, `DatabaseUnavailable` when the server is not there, and
        `OutcomeUnknown` when it went away during the commit.
        """
        return await self._run(False, function, *args, **kwargs)

    async def _run(
        self,
        single: bool,
        function: Callable[Concatenate[Session, P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        key, most = on_behalf_of.get(), _MOST_WAITING * self._size
        if self._turns.waiting(key) >= most or self._waiting >= 4 * most:
            raise Overloaded
        self._waiting += 1
        try:
            async with asyncio.timeout(self._wait):
                await self._turns.take(key)
        except TimeoutError:
            raise Overloaded from None
        finally:
            self._waiting -= 1
        context = contextvars.copy_context()
        transact = functools.partial(self._transact, single, function, *args, **kwargs)
        work = asyncio.get_running_loop().run_in_executor(self._threads, context.run, transact)
        work.add_done_callback(functools.partial(self._release, key))
        return await asyncio.shield(work)

    def _release(self, key: Hashable, done: asyncio.Future[R]) -> None:
        # Only now, as the thread is busy until then even when whoever asked has gone.
        self._turns.give(key)
        if not done.cancelled():
            done.exception()  # it has been, or will be, raised where it was waited for, if anywhere

    def _transact(
        self,
        single: bool,
        function: Callable[Concatenate[Session, P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        for _ in range(_TRIES - 1):
            try:
                return self._try(single, function, *args, **kwargs)
            except exc.DBAPIError as error:
                if _state(error) not in _ROLLED_BACK:
                    raise
        return self._try(single, function, *args, **kwargs)

    def _try(
        self,
        single: bool,
        function: Callable[Concatenate[Session, P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        committing = False
        try:
            with self._session(single) as session:
                try:
                    result = function(session, *args, **kwargs)
                except StopIteration as error:  # which no future can hold: whoever waits would wait for ever
                    raise RuntimeError("a function over a session raised StopIteration") from error
                committing = True
                session.commit()
                return result
        except exc.TimeoutError:
            raise Overloaded from None
        except exc.DBAPIError as error:
            if _state(error) in _TOO_SLOW:
                raise Overloaded("The database took too long; try again in a moment.") from error
            if not is_disconnect(error):
                raise
            _warn(error.orig)
            raise (OutcomeUnknown if committing else DatabaseUnavailable) from error

    @contextmanager
    def _session(self, single: bool) -> Iterator[Session]:
        with self.engine.connect() as connection:
            raw = connection.connection.driver_connection
            assert raw is not None
            raw.autocommit = single  # in the driver alone: SQLAlchemy's isolation levels would cost a round trip
            try:
                with Session(connection, expire_on_commit=False) as session:
                    yield session
            finally:
                if single and not raw.closed:
                    raw.autocommit = False

    def close(self) -> None:
        """Give back threads and connections."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self.engine.dispose()
        while self._idle:
            self._idle.pop().close()
