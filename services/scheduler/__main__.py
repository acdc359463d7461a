"""The scheduler: lets jobs become ready when their time has come, and notices runners that are gone."""

from __future__ import annotations

import asyncio
import signal

import click
import uvloop

from baselayer import log
from baselayer.database import Database
from baselayer.failpoint import FailPoints
from services import account, background, keys
from services.options import config_option
from services.ready import schema_is_current
from shell_service.scheduler import Scheduler
from shell_service.secrets import Keyring
from shell_service.settings import Settings


@click.command()
@config_option
def main(settings: Settings) -> None:
    """Do what has to happen because time passes."""
    log.set_up(settings.log.level)
    background.give_way()
    database_url, keyring = settings.database_url, keys.keyring(settings)
    account.enter(settings, database_url, [settings.upload_dir, settings.layer_dir])
    uvloop.run(serve(settings, database_url, keyring))


async def serve(settings: Settings, database_url: str, keyring: Keyring) -> None:
    """Work until SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    database = Database(database_url, size=4, statement_timeout=settings.database.statement_timeout, wait=10.0)
    if await schema_is_current(database, stop):
        await Scheduler(settings, database, keyring, FailPoints()).run(stop)


if __name__ == "__main__":
    main()
