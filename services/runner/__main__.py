"""A runner: takes jobs from the queue and runs them in sandboxes on this host."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import sys
from pathlib import Path

import click
import uvloop

from baselayer import log
from baselayer.database import Database
from baselayer.failpoint import FailPoints
from services.options import config_option
from services.ready import schema_is_current
from shell_service import shells
from shell_service.runner import Runner
from shell_service.sandbox import Sandbox
from shell_service.settings import Settings


@click.command()
@config_option
@click.option("--process", default=0, help="Number of this runner.")
def main(settings: Settings, process: int) -> None:
    """Run jobs."""
    log.set_up(settings.log.level)
    name = f"runner_{process:02d}"
    folder = settings.data_dir / "runner" / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = hold(folder)
    uvloop.run(serve(settings, folder, name))
    os.close(lock)


def hold(folder: Path) -> int:
    """Make sure that no other process is this runner; returns the descriptor that holds it."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"another process is the runner of {folder} already")
    return lock


async def serve(settings: Settings, folder: Path, name: str) -> None:
    """Run until SIGTERM, then drain; at a second SIGTERM end at once what still runs."""
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: (hurry if stop.is_set() else stop).set())
    database = Database(settings.database_url, size=3, statement_timeout=settings.database.statement_timeout, wait=10.0)
    offered = shells.available(settings.shells)
    sandbox = Sandbox(settings.sandbox)
    runner = Runner(settings, database, sandbox, offered, folder, socket.gethostname(), name, FailPoints())
    if await schema_is_current(database, stop):
        await runner.run(stop, hurry)


if __name__ == "__main__":
    main()
