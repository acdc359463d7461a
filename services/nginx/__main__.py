"""The router, as a supervised process: makes the way clear, then becomes `nginx`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click

from baselayer import privilege, processes
from baselayer.privilege import Account, Capability
from services.layout import CERTIFICATE_DESCRIPTOR, KEY_DESCRIPTOR
from services.options import config_option
from shell_service.settings import ROOT, Settings

_FIRST_FREE_PORT = 1024  # for those below it takes a right of its own


@click.command()
@config_option
def main(settings: Settings) -> None:
    """Run nginx with the configuration that the start has rendered."""
    nginx = shutil.which("nginx")
    if nginx is None:
        sys.exit("nginx is not installed")
    # The workers of a master that was killed keep its port, and nobody would ever stop them.
    processes.end(processes.in_folders({"nginx": settings.run_dir}), grace=5)
    scratch = settings.run_dir / "nginx"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700)
    try:
        for path, descriptor in (
            (settings.server.tls.certificate, CERTIFICATE_DESCRIPTOR),
            (settings.server.tls.key, KEY_DESCRIPTOR),
        ):
            if path:
                _in_memory(ROOT / path, descriptor, settings.router_account)
        if settings.router_account:
            _enter(settings, settings.router_account, scratch)
    except OSError as error:
        sys.exit(f"the router cannot be started: {error}")
    # Working in this folder is how its processes are known for ours: they overwrite their environment.
    os.chdir(settings.run_dir)
    os.execv(nginx, [nginx, "-c", str(settings.run_dir / "nginx.conf"), "-p", str(settings.run_dir)])


def _in_memory(path: Path, descriptor: int, owner: Account | None) -> None:
    """A copy of the file, open under this number in whatever this process becomes; to be opened by `owner` alone."""
    memory = os.memfd_create("tls", os.MFD_CLOEXEC)
    with open(memory, "wb", closefd=False) as file:
        file.write(path.read_bytes())
    os.fchmod(memory, 0o400)
    if owner:
        os.fchown(memory, owner.uid, owner.gid)
    os.dup2(memory, descriptor)
    os.close(memory)


def _enter(settings: Settings, account: Account, scratch: Path) -> None:
    """Become the router's account, with access to nothing but what it serves and where it passes requests on."""
    os.chown(scratch, account.uid, account.gid)
    for stream in (1, 2):  # the supervisor's pipe, which nginx opens by name
        os.fchown(stream, account.uid, account.gid)
    privilege.expose([settings.run_dir, settings.site_dir, settings.socket_dir], account)
    privilege.drop(account, [Capability.NET_BIND_SERVICE] if settings.server.port < _FIRST_FREE_PORT else [])


if __name__ == "__main__":
    main()
