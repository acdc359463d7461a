"""Installs packages for jobs into a layer: run by a runner, and no longer root when it begins, if that is."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import click

from baselayer import privilege
from baselayer.privilege import Account
from shell_service.sandbox import kernel
from shell_service.settings import ROOT


@click.command()
@click.option("--uid", type=int, help="Whom to become, where root runs this.")
@click.argument("python")
@click.argument("layer", type=click.Path(path_type=Path))
@click.argument("requirements", nargs=-1)
def main(uid: int | None, python: str, layer: Path, requirements: tuple[str, ...]) -> None:
    """Install REQUIREMENTS into the folder LAYER, for the interpreter PYTHON.

    The index is in the environment, as its address may hold a password: PIP_INDEX_URL.
    """
    runner = os.getppid()
    try:
        if uid is not None:
            account = Account(uid, uid)
            needed = [ROOT, Path(sys.prefix), Path(sys.base_prefix), layer.parent]
            privilege.expose([path.resolve() for path in needed], account)
            privilege.become(account)
        kernel.end_with_parent(runner)  # nobody wants it any more then
    except OSError as error:
        sys.exit(f"cannot run as uid {uid}: {error}")
    os.umask(0o022)  # jobs are others
    arguments = [
        *(sys.executable, "-I", "-m", "pip", "--python", python, "install"),
        *("--only-binary", ":all:", "--target", str(layer)),
        *("--no-cache-dir", "--no-input", "--no-compile", "--disable-pip-version-check", "--progress-bar", "off"),
        "--",
        *requirements,
    ]
    with tempfile.TemporaryDirectory(dir=layer.parent, prefix="tmp-") as scratch:
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": "/nonexistent",
            "LANG": "C.UTF-8",
            "TMPDIR": scratch,
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": os.environ["PIP_INDEX_URL"],
        }
        end = partial(kernel.end_with_parent, os.getpid())
        sys.exit(subprocess.run(arguments, env=environment, check=False, preexec_fn=end).returncode)


if __name__ == "__main__":
    main()
