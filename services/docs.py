"""Building the documentation site into the folder that nginx serves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from shell_service import __version__
from shell_service.settings import ROOT, Settings

SOURCE = ROOT / "docs"
_STAMP = ".version"
_BUILD_SECONDS = 300


class DocsError(Exception):
    """The documentation cannot be built; the message says why."""


def is_current(settings: Settings) -> bool:
    """Whether the site is there and of this version."""
    try:
        return (settings.site_dir / _STAMP).read_text() == __version__
    except OSError:
        return False


def build(settings: Settings, say: Callable[[str], None]) -> None:
    """Build the site and put it in place, file by file, while it may be served. Raises `DocsError`."""
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
    (settings.site_dir / _STAMP).write_text(__version__)


def _replace(new: Path, place: Path) -> None:
    """Make `place` hold what `new` holds. The folder itself stays: the router may have it mounted."""
    wanted = {path.relative_to(new) for path in new.rglob("*")}
    for path in sorted(wanted):
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
