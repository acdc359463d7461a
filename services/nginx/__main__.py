"""The router, as a supervised process: makes the way clear, then becomes `nginx`."""

from __future__ import annotations

import os
import shutil
import ssl
import sys
from pathlib import Path

import click

from baselayer import privilege, processes, token
from baselayer.privilege import Account, Capability
from services.layout import CERTIFICATE_DESCRIPTOR, KEY_DESCRIPTOR
from services.options import config_option
from shell_service.settings import ROOT, Settings

_FIRST_FREE_PORT = 1024  # for those below it takes a right of its own
# nginx writes what clients send into its error log as it came. This leaves of it, in a line that is not too long: no
# query, which like anything could hold a token, and nothing that a terminal takes for more than text.
_READABLE = (
    f"s/{token.PREFIX}[[:alnum:]]\\{{20,\\}}/{token.PREFIX}***/g",
    's/?[^ "]*//g',
    "s/[^[:print:]]/?/g",
    "s/^\\(.\\{1500\\}\\).*/\\1.../",
)


@click.command()
@config_option
def main(settings: Settings) -> None:
    """Run nginx with the configuration that the start has rendered."""
    nginx, sed = shutil.which("nginx"), shutil.which("sed")
    if nginx is None or sed is None:
        sys.exit(f"{'sed' if nginx else 'nginx'} is not installed")
    # The workers of a master that was killed keep its port, and nobody would ever stop them.
    processes.end(processes.in_folders({"nginx": settings.run_dir}), grace=5)
    scratch = settings.run_dir / "nginx"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700)
    _check_tls(settings)
    try:
        if settings.router_account:
            _enter(settings, settings.router_account, scratch)
    except OSError as error:
        sys.exit(f"the router cannot be started: {error}")
    # Working in this folder is how its processes are known for ours: they overwrite their environment.
    os.chdir(settings.run_dir)
    _make_errors_readable(sed)
    os.execv(nginx, [nginx, "-c", str(settings.run_dir / "nginx.conf"), "-p", str(settings.run_dir)])


def _check_tls(settings: Settings) -> None:
    """End with a sentence where certificate and key cannot be used: nginx would not name the files."""
    tls = settings.server.tls
    if not tls.certificate:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(ROOT / tls.certificate, ROOT / tls.key, "")
    except OSError as error:
        sys.exit(f"server.tls.certificate {tls.certificate} and key {tls.key} cannot be used: {error}")


def _enter(settings: Settings, account: Account, scratch: Path) -> None:
    """Become the router's account, with access to nothing but what it serves and where it passes requests on."""
    tls = settings.server.tls
    for path, descriptor in ((tls.certificate, CERTIFICATE_DESCRIPTOR), (tls.key, KEY_DESCRIPTOR)):
        if path:
            _in_memory(ROOT / path, descriptor, account)
    os.chown(scratch, account.uid, account.gid)
    for stream in (1, 2):  # the supervisor's pipe, which nginx opens by name
        os.fchown(stream, account.uid, account.gid)
    privilege.expose([settings.run_dir, settings.site_dir, settings.socket_dir], account)
    privilege.drop(account, [Capability.NET_BIND_SERVICE] if settings.server.port < _FIRST_FREE_PORT else [])


def _in_memory(path: Path, descriptor: int, owner: Account) -> None:
    """A copy of the file, open under this number in whatever this process becomes; to be opened by `owner` alone."""
    memory = os.memfd_create("tls", os.MFD_CLOEXEC)
    with open(memory, "wb", closefd=False) as file:
        file.write(path.read_bytes())
    os.fchmod(memory, 0o400)
    os.fchown(memory, owner.uid, owner.gid)
    os.dup2(memory, descriptor)
    os.close(memory)


def _make_errors_readable(sed: str) -> None:
    """Let what is written to standard error from here on go through a filter, which ends when all who write have."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.dup2(read, 0)
        os.execve(sed, [sed, "-u", ";".join(_READABLE)], {**os.environ, "LC_ALL": "C"})
    os.dup2(write, 2)


if __name__ == "__main__":
    main()
