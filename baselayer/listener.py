"""Notifications from the database, on the event loop."""

from __future__ import annotations

import asyncio
import logging
import select
from collections.abc import Callable

import psycopg2
import psycopg2.extensions

from baselayer.connection import CONNECT_OPTIONS, dsn_of, ready

logger = logging.getLogger(__name__)


class Listener:
    """A connection of its own that hears NOTIFY, and reconnects when the database was away.

    A notification is a hint: whoever listens also looks for himself now and then, and `on_connect` is the moment to
    do so at once, as what was said during an outage is lost.
    """

    def __init__(
        self, url: str, handlers: dict[str, Callable[[str], None]], on_connect: Callable[[], None] = lambda: None
    ) -> None:
        """`handlers` maps a channel to what is called, on the event loop, with each payload."""
        self._dsn = dsn_of(url)
        self._handlers = handlers
        self._on_connect = on_connect

    async def run(self) -> None:
        """Listen until cancelled."""
        delay = 0.1
        while True:
            try:
                connection = await asyncio.to_thread(self._connect)
            except psycopg2.Error as error:
                logger.warning("cannot listen: %s", str(error).strip().splitlines()[:1])
                await asyncio.sleep(delay)
                delay = min(delay * 2, 2.0)
                continue
            delay = 0.1
            try:
                self._on_connect()
                await self._listen(connection)
            except psycopg2.Error as error:
                logger.warning("listening ended: %s", str(error).strip().splitlines()[:1])
            finally:
                connection.close()

    def _connect(self) -> psycopg2.extensions.connection:
        connection = psycopg2.connect(self._dsn, **CONNECT_OPTIONS)
        connection.autocommit = True
        with connection.cursor() as cursor:
            for channel in self._handlers:
                cursor.execute(f'LISTEN "{channel}"')
        return connection

    async def _listen(self, connection: psycopg2.extensions.connection) -> None:
        loop = asyncio.get_running_loop()
        news = asyncio.Event()
        descriptor = connection.fileno()
        loop.add_reader(descriptor, news.set)
        try:
            while True:
                # uvloop tells of a socket in error only once, maybe before we had read what came before the error.
                if not ready(descriptor, select.POLLIN, 0):
                    await news.wait()
                news.clear()
                connection.poll()
                while connection.notifies:
                    notice = connection.notifies.pop(0)
                    if handler := self._handlers.get(notice.channel):
                        handler(notice.payload)
                await asyncio.sleep(0)  # others have their turn
        finally:
            loop.remove_reader(descriptor)
