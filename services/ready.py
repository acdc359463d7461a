"""Waiting for the database: a process begins its work when the schema is the one that its code knows."""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy.orm import Session

from baselayer.database import Database
from baselayer.errors import Unavailable
from baselayer.waiting import wait_for
from shell_service import migrations

logger = logging.getLogger(__name__)

_PAUSE = 0.1  # seconds between looks


async def schema_is_current(database: Database, stop: asyncio.Event) -> bool:
    """Wait until the database is there and migrated to this code's version; False when `stop` was set before."""
    said = False
    while not stop.is_set():
        try:
            if await database.ask(_is_current):
                return True
        except Unavailable:
            pass
        if not said:
            logger.info("waiting for the database to have schema %s", migrations.HEAD)
            said = True
        await wait_for(stop, _PAUSE)
    return False


def _is_current(session: Session) -> bool:
    return migrations.is_current(session.connection())
