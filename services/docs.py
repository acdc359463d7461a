"""Building the documentation site into the folder that nginx serves."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from services.errors import OperatorError
from shell_service.settings import ROOT, Settings

SOURCE = ROOT / "docs"
# What pages are made from, beside their sources.
_CODE = (
    "CHANGELOG.md",
    "Makefile",
    "config.yaml.defaults",
    "baselayer/code_samples.py",
    "baselayer/database.py",
    "baselayer/errors.py",
    "baselayer/fields.py",
    "baselayer/openapi.py",
    "shell_service/__init__.py",
    "shell_service/document.py",
    "shell_service/handlers/*.py",
    "shell_service/schemas.py",
    "shell_service/scopes.py",
)
_STAMP = ".stamp"
_BUILD_SECONDS = 300


class DocsError(OperatorError):
    """The documentation cannot be built; the message says why."""


def is_current(settings: Settings) -> bool:
    """Whether the site is there, and made from what its sources are now."""
    try:
        return (settings.site_dir / _STAMP).read_text() == fingerprint(settings)
    except OSError:
        return False


def mark_current(settings: Settings) -> None:
    """Say that the site is there, and made from what its sources are now."""
    (settings.site_dir / _STAMP).write_text(fingerprint(settings))


def fingerprint(settings: Settings) -> str:
    """A hash of everything that the site is made from. Takes a few milliseconds."""
    digest = hashlib.sha256(f"{settings.base_url} {settings.jobs}".encode())
    sources = [path for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    for path in sorted([*sources, *(path for pattern in _CODE for path in ROOT.glob(pattern))]):
        digest.update(f"{path.relative_to(ROOT)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def build(settings: Settings, overlay: Path | None, say: Callable[[str], None]) -> None:
    """Build the site and put it in place, file by file, while it may be served. Raises `DocsError`.

    `overlay` is the configuration file that was named, if one was: pages show the address and the limits of it.
    """
    if not (SOURCE / "conf.py").exists():
        raise DocsError(f"there is no {SOURCE.name}/conf.py to build the documentation from")
    say("[check] building the documentation site")
    settings.site_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="site-", dir=settings.data_dir) as scratch:
        site = Path(scratch) / "html"
        command = [
            sys.executable,
            "-m",
            "sphinx",
            "-q",
            "-b",
            "html",
            "-T",
            "-d",
            f"{scratch}/trees",
            "-D",
            f"service_config={overlay or ''}",
            str(SOURCE),
            str(site),
        ]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, capture_output=True,
            timeout=_BUILD_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise DocsError(f"the documentation cannot be built:\n{(done.stdout + done.stderr).strip()[-3000:]}")
        _replace(site, settings.site_dir)
    mark_current(settings)


def _replace(new: Path, place: Path) -> None:
    """Make `place` hold what `new` holds. The folder itself stays: the router may have it mounted."""
    wanted = {path.relative_to(new) for path in new.rglob("*")}
    for path in sorted(wanted, key=lambda path: (path.suffix == ".html", path)):  # pages come after what they need
        target = place / path
        if (new / path).is_dir():
            target.mkdir(mode=0o755, exist_ok=True)
            target.chmod(0o755)
        else:
            (new / path).chmod(0o644)
            (new / path).replace(target)
    for path in sorted(place.rglob("*"), reverse=True):
        if path.relative_to(place) not in wanted:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
