"""A connection to PostgreSQL that the event loop reads itself.

A thread for each statement costs more than a short statement does: two hand-overs, and the interpreter's lock each
time. So what is asked most often goes this way, one statement at a time, each a transaction of its own.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Collection, Mapping
from typing import Any, Self

import psycopg2
import psycopg2.extensions
import psycopg2.extras
import sqlalchemy
from psycopg2.extensions import POLL_OK, POLL_READ, POLL_WRITE

CONNECT_OPTIONS: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15000,
}


def dsn_of(url: str) -> str:
    """libpq's form of a URL of SQLAlchemy's."""
    return sqlalchemy.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


class Connection:
    """An open connection; `open` makes one."""

    def __init__(self, raw: psycopg2.extensions.connection) -> None:
        self._raw = raw
        self._loop = asyncio.get_running_loop()
        # A copy: the driver closes its own as soon as the connection breaks, and another file may get that number.
        self._descriptor = os.dup(raw.fileno())
        self._waiter: asyncio.Future[None] | None = None
        self._closed = False
        self._kept: dict[str, str] = {}  # statements that the server keeps, by what they were made of
        self._loop.add_reader(self._descriptor, self._readable)

    @classmethod
    async def open(cls, dsn: str, options: Mapping[str, Any]) -> Self:
        """Connect; `options` are libpq's. Raises `psycopg2.OperationalError` where there is no server."""
        return cls(await asyncio.to_thread(_connect, dsn, options))

    @property
    def broken(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._closed or bool(self._raw.closed)

    async def fetch(self, sql: str, parameters: Mapping[str, Any], kept: bool = False) -> list[tuple[Any, ...]]:
        """The rows that one statement gives; its plan may be `kept` for the next time. Raises `psycopg2.Error`.

        Whoever stops waiting has to close the connection: the answer would be taken for that to the next statement.
        """
        return await self._ask(await self._keep(sql, parameters) if kept else sql, parameters)

    async def _keep(self, sql: str, names: Collection[str]) -> str:
        """The statement that asks what is kept of another one."""
        if sql not in self._kept:
            name = f"kept_{len(self._kept)}"
            numbers = {each: f"${number}" for number, each in enumerate(names, 1)}
            await self._ask(f"PREPARE {name} AS {sql % numbers}", None)
            values = ", ".join(f"%({each})s" for each in numbers)
            self._kept[sql] = f"EXECUTE {name} ({values})" if numbers else f"EXECUTE {name}"
        return self._kept[sql]

    async def _ask(self, sql: str, parameters: Mapping[str, Any] | None) -> list[tuple[Any, ...]]:
        with self._raw.cursor() as cursor:
            cursor.execute(sql, parameters)
            waited = False
            while (state := self._raw.poll()) != POLL_OK:
                # uvloop tells of a socket in error only once, maybe before we had read what came before the error.
                if not (waited and ready(self._descriptor, select.POLLIN, 0)):
                    await self._wait(writing=state == POLL_WRITE)
                    waited = True
            return cursor.fetchall() if cursor.description else []

    async def _wait(self, writing: bool) -> None:
        self._waiter = self._loop.create_future()
        if writing:
            self._loop.add_writer(self._descriptor, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if writing and not self._closed:
                self._loop.remove_writer(self._descriptor)

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def _readable(self) -> None:
        if self._waiter:
            self._wake()
        # Nothing was asked. This may be about what has been read already; but if there is more, it is a goodbye.
        elif ready(self._descriptor, select.POLLIN, 0):
            self.close()

    def close(self) -> None:
        """Hang up. Whether a statement under way has been done is not known then."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._descriptor)
            self._loop.remove_writer(self._descriptor)
            os.close(self._descriptor)
            self._raw.close()


def _connect(dsn: str, options: Mapping[str, Any]) -> psycopg2.extensions.connection:
    """In a thread: the driver looks up the host's name and reads password files before it first returns."""
    raw = psycopg2.connect(dsn, async_=1, **options)
    end = time.monotonic() + options["connect_timeout"]
    while (state := raw.poll()) != POLL_OK:
        events = select.POLLIN if state == POLL_READ else select.POLLOUT
        if not ready(raw.fileno(), events, end - time.monotonic()):
            raw.close()
            raise psycopg2.OperationalError("connection timeout expired")
    psycopg2.extras.register_uuid(None, raw)
    return raw


def ready(descriptor: int, events: int, seconds: float) -> bool:
    """Whether any of `events` (such as `select.POLLIN`) comes within `seconds`.

    Unlike select(), poll() knows descriptors of any number.
    """
    poll = select.poll()
    poll.register(descriptor, events)
    return bool(poll.poll(max(0, seconds) * 1000))
