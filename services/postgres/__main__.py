"""The embedded database server, as a supervised process: makes what is missing, then becomes `postgres`."""

from __future__ import annotations

import os
import sys

import click

from baselayer import postgres
from services.options import config_option
from shell_service.settings import Settings


def prepare(settings: Settings) -> list[str]:
    """Make the database where there is none, and become fit to run it; returns the server's command."""
    settings.cluster.create()
    argv = settings.cluster.argv(settings.max_connections, settings.database.shared_buffers)
    settings.cluster.enter()
    return argv


@click.command()
@config_option
def main(settings: Settings) -> None:
    """Run the embedded database server."""
    try:
        argv = prepare(settings)
    except (postgres.PostgresError, OSError) as error:
        sys.exit(f"the embedded database cannot be started: {error}")
    os.chdir("/")
    # exec: the supervisor's signals reach PostgreSQL itself, and nothing of ours stays in memory.
    os.execv(argv[0], argv)


if __name__ == "__main__":
    main()
