"""The router, as a supervised process: makes the way clear, then becomes `nginx`."""

from __future__ import annotations

import os
import shutil
import sys

import click

from baselayer import processes
from baselayer.privilege import expose, named_account
from services.layout import WEB_ACCOUNTS
from services.options import config_option
from shell_service.settings import ROOT, Settings


@click.command()
@config_option
def main(settings: Settings) -> None:
    """Run nginx with the configuration that the start has rendered."""
    nginx = shutil.which("nginx")
    if nginx is None:
        sys.exit("nginx is not installed")
    # The workers of a master that was killed keep its port, and nobody would ever stop them.
    processes.end(processes.in_folders({"nginx": settings.run_dir}), grace=5)
    if os.geteuid() == 0:
        tls = [ROOT / path for path in (settings.server.tls.certificate, settings.server.tls.key) if path]
        # The logs are the supervisor's, so neither their folder nor the database is of its business.
        own = [settings.run_dir, settings.site_dir, settings.socket_dir, *tls]
        expose([path.resolve() for path in own], named_account(*WEB_ACCOUNTS)[1])
    # Working in this folder is how its processes are known for ours: they overwrite their environment.
    os.chdir(settings.run_dir)
    os.execv(nginx, [nginx, "-c", str(settings.run_dir / "nginx.conf"), "-p", str(settings.run_dir)])


if __name__ == "__main__":
    main()
