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
@click.argument("index")
@click.argument("layer", type=click.Path(path_type=Path))
@click.argument("requirements", nargs=-1)
def main(uid: int | None, python: str, index: str, layer: Path, requirements: tuple[str, ...]) -> None:
    """Install REQUIREMENTS from INDEX into the folder LAYER, for the interpreter PYTHON."""
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
        *("--index-url", index, "--only-binary", ":all:", "--target", str(layer)),
        *("--no-cache-dir", "--no-input", "--no-compile", "--disable-pip-version-check", "--progress-bar", "off"),
        "--",
        *requirements,
    ]
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8", "PIP_CONFIG_FILE": os.devnull}
    with tempfile.TemporaryDirectory(dir=layer.parent, prefix="tmp-") as scratch:
        end = partial(kernel.end_with_parent, os.getpid())
        pip = subprocess.run(arguments, env={**environment, "TMPDIR": scratch}, check=False, preexec_fn=end)
        sys.exit(pip.returncode)


if __name__ == "__main__":
    main()
