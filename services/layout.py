"""Where the services' files are, and what goes into them: everything that must be there before the first process."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import resource
import shlex
import stat
import sys
from pathlib import Path
from typing import Any

from baselayer import privilege, rendering, token
from baselayer.config import ConfigError
from shell_service import __version__
from shell_service.settings import ROOT, Settings

SERVICES = ROOT / "services"
# Where nginx finds certificate and key that may be readable for root alone: files in memory, handed to it.
CERTIFICATE_DESCRIPTOR, KEY_DESCRIPTOR = 10, 11


def prepare_folders(settings: Settings) -> None:
    """Make the folders that all services share. Those that only the owner may enter are 0700.

    As root others must pass through to what is theirs (nginx to the site and the sockets, PostgreSQL to its data),
    without seeing what else is there: 0711. Raises `ConfigError` when a folder belongs to somebody else, or one of the
    services' accounts is somebody else's.
    """
    account, router = settings.account, settings.router_account
    pass_through, private = 0o711 if account else 0o700, 0o700
    folders = {
        settings.data_dir: pass_through,
        settings.run_dir: pass_through,
        settings.log_dir: private,
        # What is made in these gets the folder's group: outputs and uploads the services' own, sockets nginx's.
        settings.output_dir: 0o2750 if account else 0o700,
        settings.upload_dir: 0o2770 if account else 0o700,  # they are made by the web workers, and read by runners
        settings.layer_dir: 0o2771 if account else 0o711,  # they are made by that account, too, and jobs pass through
        settings.socket_dir: 0o2711 if router else 0o700,
        settings.secrets_dir: private,
        settings.site_dir: 0o755,
    }
    groups = {}
    if account and router:
        _check_accounts(settings)
        groups = {
            settings.output_dir: account.gid,
            settings.upload_dir: account.gid,
            settings.layer_dir: account.gid,
            settings.socket_dir: router.gid,
        }
    for folder, mode in folders.items():
        rendering.check_path(folder, "data_dir")
        try:
            folder.mkdir(mode=private, parents=True, exist_ok=True)
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode):
                raise ConfigError(f"{folder} is not a folder but a link or a file: remove it")
            if status.st_uid != os.geteuid():
                raise ConfigError(f"{folder} belongs to uid {status.st_uid}, and this is uid {os.geteuid()}")
            if folder in groups and status.st_gid != groups[folder]:
                _give_group(folder, groups[folder])  # also what is in it, as after a backup was restored
            folder.chmod(mode)
        except OSError as error:
            raise ConfigError(f"cannot use the folder {folder}: {error.strerror}") from error


def _check_accounts(settings: Settings) -> None:
    """Raises `ConfigError` where the services' own numbers are somebody else's."""
    for account in (settings.account, settings.router_account, settings.cluster.account):
        if account and (name := privilege.name_of(account)):
            raise ConfigError(
                f"sandbox.uid_base is {settings.sandbox.uid_base}, and the three uids and gids below it are to be the "
                f"service's own, but {account.uid} is {name}: set another"
            )


def _give_group(folder: Path, gid: int) -> None:
    for above, _, files in os.walk(folder, topdown=False):  # itself last, so that it is done again if it was cut short
        for path in (*(os.path.join(above, name) for name in files), above):
            os.chown(path, -1, gid, follow_symlinks=False)


def write_configuration(settings: Settings, overlay: Path | None) -> Path:
    """Render nginx's and supervisord's configuration into `run_dir`; returns the path of the latter."""
    context = _context(settings, overlay)
    nginx = rendering.environment(SERVICES).get_template("nginx/nginx.conf.j2").render(context)
    rendering.write(settings.run_dir / "nginx.conf", nginx, 0o600, settings.router_account)
    path = settings.run_dir / "supervisord.conf"
    rendering.write(path, rendering.supervisor_config([SERVICES], context))
    return path


def clean_environment(settings: Settings) -> dict[str, str]:
    """The environment of every service: nothing of the operator's, no secret, and a mark of whose they are."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/homebrew/bin",
        "LANG": "C.UTF-8",
        "HOME": str(settings.data_dir),
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        # glibc would keep a heap for each thread, and in each of them, as in PostgreSQL's, what a load has needed.
        "MALLOC_ARENA_MAX": "2",
        "MALLOC_TRIM_THRESHOLD_": "131072",
        MARK: str(settings.data_dir),
    }


MARK = "SHELL_SERVICE_DATA_DIR"


def stop_seconds(settings: Settings) -> float:
    """The longest that an orderly stop of everything may take: the services' own limits, one after the other."""
    app = _app_stop_seconds(settings)
    return 2 * app + runner_stop_seconds(settings) + 15 + 5 + 30 + 60


def _app_stop_seconds(settings: Settings) -> int:
    return int(settings.server.drain_seconds) + 5


def runner_stop_seconds(settings: Settings) -> int:
    """Draining, then ending what is left the gentle way, then reporting it."""
    return int(settings.runner.drain_seconds + settings.jobs.kill_grace) + 10


def _context(settings: Settings, overlay: Path | None) -> dict[str, Any]:
    rendering.check_path(ROOT, "the checkout")
    rendering.check_path(Path(sys.executable), "Python")
    arguments = ["--config", str(rendering.check_path(overlay, "CONFIG"))] if overlay else []

    def command(service: str) -> str:
        return shlex.join([sys.executable, "-m", f"services.{service}", *arguments])

    def envelope(code: str, message: str) -> str:
        data = {"code": code, "errors": {}}
        return quoted({"status": "error", "message": message, "data": data, "version": __version__})

    def problem(status: int, code: str, message: str) -> str:
        title = code.title().replace("_", "")
        names = {"type": "about:blank", "title": title, "status": status, "detail": message}
        return quoted({**names, "code": code, "errors": {}})

    def quoted(content: dict[str, Any]) -> str:
        return json.dumps(content).replace("\\", "\\\\").replace("'", "\\'")

    files = _open_files(2 * settings.server.max_waiting + 2048)
    # Each request holds two: the client's connection and the worker's.
    nginx_files = _open_files(2 * settings.server.processes * settings.server.max_waiting + 4096)
    host = f"[{settings.server.host}]" if ":" in settings.server.host else settings.server.host
    tls = settings.server.tls
    return {
        "settings": settings,
        "root": ROOT,
        "root_user": os.geteuid() == 0,
        "command": command,
        "envelope": envelope,
        "problem": problem,
        # Not for localhost: browsers would refuse plain HTTP of everything else on that host.
        "hsts": bool(tls.certificate and settings.server.public_url),
        "token_prefix": token.PREFIX,
        "open_files": files,
        "app_stop_seconds": _app_stop_seconds(settings),
        "runner_stop_seconds": runner_stop_seconds(settings),
        "nginx_processes": max(1, (os.cpu_count() or 1) // 2),
        "nginx_files": nginx_files,
        "nginx_connections": nginx_files - 64,
        "listen": f"{host}:{settings.server.port}",
        "tls_certificate": _tls_file(settings, CERTIFICATE_DESCRIPTOR, tls.certificate, "server.tls.certificate"),
        "tls_key": _tls_file(settings, KEY_DESCRIPTOR, tls.key, "server.tls.key"),
        "site_policy": site_policy(settings.site_dir),
    }


def _tls_file(settings: Settings, descriptor: int, path: str, key: str) -> Path:
    return Path(f"/proc/self/fd/{descriptor}") if settings.router_account else rendering.check_path(ROOT / path, key)


def _open_files(wanted: int) -> int:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)


def site_policy(site: Path) -> str:
    """The Content-Security-Policy of the docs site: its own files, and exactly the inline scripts that it has."""
    hashes = set()
    for page in site.rglob("*.html"):
        for script in re.findall(r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", page.read_text(), re.DOTALL):
            digest = hashlib.sha256(script.encode()).digest()
            hashes.add(f"'sha256-{base64.b64encode(digest).decode()}'")
    scripts = " ".join(["'self'", *sorted(hashes)[:50]])
    return (
        f"default-src 'self'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    )
