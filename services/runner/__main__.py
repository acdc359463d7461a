"""A runner: takes jobs from the queue and runs them in sandboxes on this host."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path

import click
import uvloop

from baselayer import log, privilege
from baselayer.database import Database
from baselayer.failpoint import FailPoints
from baselayer.privilege import Capability
from services import background, keys
from services.options import config_option
from services.ready import schema_is_current
from shell_service import secrets, shells
from shell_service.packages import Packages
from shell_service.runner import Runner
from shell_service.sandbox import Sandbox, cgroup
from shell_service.sandbox.cgroup import Groups
from shell_service.secrets import Keyring
from shell_service.settings import Settings

logger = logging.getLogger(__name__)

# What of root's rights it takes to run jobs of several users.
RIGHTS = (
    Capability.SETUID,  # jobs have uids of their own,
    Capability.SETGID,  # and gids
    Capability.SYS_ADMIN,  # namespaces and mounts
    Capability.MKNOD,  # /dev/null and its like
    Capability.KILL,  # and are to be ended
    Capability.SYS_PTRACE,  # to see which memory a job's processes share,
    Capability.DAC_READ_SEARCH,  # and which files they hold open
)


@click.command()
@config_option
@click.option("--process", default=0, help="Number of this runner.")
def main(settings: Settings, process: int) -> None:
    """Run jobs."""
    log.set_up(settings.log.level)
    background.give_way()
    name = f"runner_{process:02d}"
    folder = settings.data_dir / "runner" / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = hold(folder)
    groups = control_groups(folder, name)
    keyring = keys.keyring(settings)
    os.umask(0o027)  # outputs are for the web workers, by their group
    if settings.account:
        privilege.limit(RIGHTS, [settings.account.gid])
    uvloop.run(serve(settings, folder, name, groups, keyring))
    os.close(lock)


def hold(folder: Path) -> int:
    """Make sure that no other process is this runner; returns the descriptor that holds it."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"another process is the runner of {folder} already")
    return lock


def control_groups(folder: Path, name: str) -> Groups | None:
    """Those of this runner, where they are delegated to us."""
    try:
        return cgroup.claim(f"{name}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}")
    except cgroup.NotDelegated as error:
        logger.info("memory and processes of jobs are watched, not held by the kernel: %s", error)
        return None


async def serve(settings: Settings, folder: Path, name: str, groups: Groups | None, keyring: Keyring) -> None:
    """Run until SIGTERM, then drain; at a second SIGTERM end at once what still runs."""
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: (hurry if stop.is_set() else stop).set())
    database = Database(settings.database_url, size=3, statement_timeout=settings.database.statement_timeout, wait=10.0)
    offered = shells.available(settings.shells)
    layers = settings.layer_dir if settings.packages.index else None
    sandbox = Sandbox(settings.sandbox, groups is not None, layers)
    install = [sys.executable, "-m", "services.packages"]
    if settings.account:
        install += ["--uid", str(settings.account.uid)]
    packages = Packages(settings.layer_dir, settings.packages, settings.runner.min_free, offered.get("python"), install)

    read_secrets = partial(secrets.of_claim, database, keyring)
    host = socket.gethostname()
    means = (sandbox, groups, packages)
    runner = Runner(settings, database, *means, offered, read_secrets, folder, host, name, FailPoints())
    if await schema_is_current(database, stop):
        await runner.run(stop, hurry)


if __name__ == "__main__":
    main()
