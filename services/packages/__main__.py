"""Installs packages for jobs into a layer: run by a runner, and no longer root when it begins, if that is."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import click
import pip

from baselayer import privilege
from baselayer.privilege import Account
from services import background
from shell_service.sandbox import kernel
from shell_service.settings import ROOT

#: Pip's own way to run with another interpreter than its environment's.
PIP = Path(pip.__file__).with_name("__pip-runner__.py")
MEMORY = 2 << 30  # bytes that pip may use: it reads what an index says


@click.command()
@click.option("--uid", type=int, help="Whom to become, where root runs this.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("most", type=int, default=0)
@click.argument("python", default="")
@click.argument("requirements", nargs=-1)
def main(uid: int | None, folder: Path, most: int, python: str, requirements: tuple[str, ...]) -> None:
    """Install REQUIREMENTS into FOLDER, for the interpreter PYTHON, no file larger than MOST bytes. With FOLDER alone,
    remove what is left of that.

    The index is in the environment, as its address may hold a password: PIP_INDEX_URL.
    """
    runner = os.getppid()
    background.give_way()
    try:
        if uid is not None:
            account = Account(uid, uid)
            needed = [ROOT, Path(sys.prefix), Path(sys.base_prefix), folder.parent]
            privilege.expose([path.resolve() for path in needed], account)
            privilege.become(account)
        kernel.end_with_parent(runner)  # nobody wants it any more then
    except OSError as error:
        sys.exit(f"cannot run as uid {uid}: {error}")
    if os.geteuid() == 0:
        sys.exit("packages are not installed as root: nothing would keep pip from starting what it finds")
    scratch = folder.with_name(f"{folder.name}.scratch")
    if not python:
        for path in (folder, scratch):
            shutil.rmtree(path, ignore_errors=True)
        return
    os.umask(0o022)  # jobs are others
    scratch.mkdir()
    arguments = [
        *(python, "-I", str(PIP), "install"),
        *("--only-binary", ":all:", "--target", str(folder)),
        *("--no-cache-dir", "--no-input", "--no-compile", "--disable-pip-version-check", "--progress-bar", "off"),
        "--",
        *requirements,
    ]
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/nonexistent",
        "LANG": "C.UTF-8",
        "TMPDIR": str(scratch),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": os.environ["PIP_INDEX_URL"],
    }
    confine = partial(_confine, os.getpid(), most)
    # In a folder where nothing is that pip could take for a package.
    sys.exit(subprocess.run(arguments, env=environment, cwd=scratch, check=False, preexec_fn=confine).returncode)


def _confine(parent: int, most: int) -> None:
    kernel.end_with_parent(parent)
    # A wheel may ask for what is none, by its address, and pip would run that to build one: as a process of its own.
    for limit, value in ((resource.RLIMIT_NPROC, 0), (resource.RLIMIT_FSIZE, most), (resource.RLIMIT_DATA, MEMORY)):
        resource.setrlimit(limit, (value, value))


if __name__ == "__main__":
    main()
