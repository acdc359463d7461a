"""Packages that jobs need: what a requirements.txt among their files names, installed once into a layer for all.

A layer is a folder under the SHA-256 of what was asked for, of the interpreter and of the index. Jobs see it read-only.
It is made by pip, from wheels alone: so nothing of what is installed is run while it is. Everything comes from the one
index that the operator has allowed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson
from packaging.requirements import InvalidRequirement, Requirement

from shell_service.capture import Capture
from shell_service.settings import Packages as Options

logger = logging.getLogger(__name__)

FILE = "requirements.txt"  # among a job's files, in their uppermost folder
MAX_BYTES = 64 * 1024  # of it
MOUNT = "/run/packages"  # where jobs see a layer
_USED = ".used"  # the file beside a layer that tells when that was
_BUILDS = 2  # at once
_UNFINISHED_DAYS = 1.0  # that what is being made may take, by far
_GRACE = 5.0  # seconds for what a killed pip has printed


class Refused(ValueError):
    """A requirements.txt that is not installed; the message is the end of a sentence about it."""


class NotInstalled(ValueError):
    """The packages could not be installed; the message is a sentence for the job's owner."""


def parse(content: bytes) -> list[str]:
    """The requirements that a file of this content names. Raises `Refused`.

    One a line, as names and versions: neither options nor addresses, which would lead elsewhere than to the index.
    """
    if len(content) > MAX_BYTES:
        raise Refused(f"must be at most {MAX_BYTES} bytes")
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError:
        raise Refused("must be UTF-8") from None
    found = set()
    for number, line in enumerate(lines, 1):
        wanted = line.split(" #")[0].strip()
        if not wanted or wanted.startswith("#"):
            continue
        if wanted.startswith("-"):
            raise Refused(f"must name packages only, and line {number} is an option")
        try:
            requirement = Requirement(wanted)
        except InvalidRequirement:
            raise Refused(f"must name packages, and line {number} is none: {wanted[:100]!a}") from None
        if requirement.url:
            raise Refused(f"must name packages of the index, and line {number} leads elsewhere")
        found.add(str(requirement))
    return sorted(found)


class Packages:
    """The layers of one host, and their making."""

    def __init__(self, folder: Path, options: Options, python: str | None, install: Sequence[str]) -> None:
        """`python` is the interpreter that jobs run; `install` a command that is given that, a folder, and requirements
        as arguments, with the index in its environment (PIP_INDEX_URL), and installs them there.
        """
        self._folder, self._options, self._python, self._install = folder, options, python, install
        self._building: dict[str, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(_BUILDS)

    async def layer(self, requirements: Sequence[str], create_log: Callable[[], int], most: int) -> Path:
        """The layer of these, made if it is not there. Raises `NotInstalled`.

        What pip says goes into the file that `create_log` opens, up to `most` bytes.
        """
        if not self._options.index:
            raise NotInstalled(f"{FILE} cannot be installed: the service's operator has allowed no index any more.")
        if self._python is None:
            raise NotInstalled(f"{FILE} cannot be installed: this runner has no Python.")
        path = self._folder / await asyncio.to_thread(self._key, requirements)
        if not await asyncio.to_thread(_use, path):
            if path.name not in self._building:
                build = asyncio.create_task(self._build(path, requirements, create_log, most))
                self._building[path.name] = build
                build.add_done_callback(lambda _: self._building.pop(path.name))
            await asyncio.shield(self._building[path.name])
        return path

    def _key(self, requirements: Sequence[str]) -> str:
        assert self._python is not None
        status = os.stat(self._python)
        interpreter = [os.path.realpath(self._python), status.st_size, status.st_mtime_ns]
        return hashlib.sha256(orjson.dumps([*requirements, interpreter, self._options.index])).hexdigest()

    async def _build(self, path: Path, requirements: Sequence[str], create_log: Callable[[], int], most: int) -> None:
        async with self._turns:
            lock = await asyncio.to_thread(_hold, path.with_name(path.name + _USED))
            try:
                if not await asyncio.to_thread(_use, path):  # else another runner has made it meanwhile
                    await self._make(path, requirements, create_log, most)
            finally:
                os.close(lock)

    async def _make(self, path: Path, requirements: Sequence[str], create_log: Callable[[], int], most: int) -> None:
        building = path.with_name(f"{path.name}.{uuid.uuid4().hex}")  # it is pip's account's, as is all in it
        await self._run([self._python or "", str(building), *requirements], create_log, most)
        size = await asyncio.to_thread(_size, building)
        if size > self._options.max_size:
            raise NotInstalled(
                f"The packages of {FILE} take {size} bytes, and {int(self._options.max_size)} are the most."
            )
        await asyncio.to_thread(building.rename, path)
        logger.info("installed %d packages into the layer %s", len(requirements), path.name)

    async def _run(self, arguments: Sequence[str], create_log: Callable[[], int], most: int) -> None:
        read, write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read, False)
        log = Capture(read, create_log, most)
        try:
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._install,
                    *arguments,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=write,
                    stderr=write,
                    env={**os.environ, "PIP_INDEX_URL": self._options.index},
                    start_new_session=True,
                )
            finally:
                os.close(write)
            try:
                async with asyncio.timeout(self._options.timeout):
                    code = await process.wait()
            except TimeoutError:
                raise NotInstalled(
                    f"The packages of {FILE} were not installed within {self._options.timeout:g} s."
                ) from None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
            await log.finish(_GRACE)
            if code:
                raise NotInstalled(f"The packages of {FILE} could not be installed; the job's stream setup says why.")
        finally:
            log.close()


def remove_old(folder: Path, keep_days: float) -> None:
    """Remove layers that no job has used for so long, and what is left of those that were not finished."""
    for path in folder.iterdir():
        layer = path.with_suffix("") if path.suffix == _USED else path
        days = keep_days if path.suffix == _USED else _UNFINISHED_DAYS
        with contextlib.suppress(FileNotFoundError):  # another scheduler is faster
            if _kept(layer) != (path != layer) or time.time() - path.stat().st_mtime < days * 86_400:
                continue
            shutil.rmtree(layer) if layer.is_dir() else layer.unlink(missing_ok=True)
            path.unlink(missing_ok=True)


def _kept(layer: Path) -> bool:
    """Whether there is a file that tells when this was used."""
    return layer.with_name(layer.name + _USED).exists()


def _use(path: Path) -> bool:
    """Whether a layer is there; then it stays for a while longer."""
    if not path.is_dir():
        return False
    path.with_name(path.name + _USED).touch(0o600)
    return True


def _hold(path: Path) -> int:
    """A descriptor with which nobody else on this host makes the same, until it is closed."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))
