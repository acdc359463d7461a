"""Packages that jobs need: what a requirements.txt among their files names, installed once into a layer for all.

A layer is a folder under the SHA-256 of what was asked for, of the interpreter and of the index. Jobs see it read-only.
It is made by pip, from wheels alone and in one process: so nothing of what is installed is run while it is. What is
asked for comes from the one index that the operator has allowed; what a package there asks for, from where that says.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import re
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from baselayer.turns import Turns
from shell_service.capture import Capture
from shell_service.sandbox.protocol import MAX_NAMED, REQUIREMENTS
from shell_service.settings import Packages as Options

logger = logging.getLogger(__name__)

FILE, MAX_BYTES = REQUIREMENTS, MAX_NAMED  # what looks into archives is in the sandbox
MOUNT = "/run/packages"  # where jobs see a layer
_USED = ".used"  # the file beside a layer: of the time when that was used last, and with its size in it
_COMMENT = re.compile(r"(^|\s)#.*")
_LONGEST = 1000  # characters of a line
_ARCHIVES = (".whl", ".zip", ".tar", ".tgz", ".tbz", ".txz", ".tlz", ".gz", ".bz2", ".xz", ".lz", ".lzma")
_BUILDS = 2  # at once
_UNFINISHED_DAYS = 1.0  # that what is being made may take, by far
_GRACE = 5.0  # seconds for what a killed pip has printed
_REMOVAL = 60.0  # seconds for removing what is left of a build; what then is, goes with old layers
_LOOK = 0.5  # seconds between looks whether another runner has made a layer
AS_ANOTHER = f"The packages of {FILE} could not be installed for another job at the same time; run it again to see why."


class Refused(ValueError):
    """A requirements.txt that is not installed; the message is the end of a sentence about it."""


class NotInstalled(ValueError):
    """The packages could not be installed; the message is a sentence for the job's owner."""


class NoRoom(NotInstalled):
    """They could not be installed for lack of room, of which there may be more later."""


def parse(content: bytes) -> list[str]:
    """The requirements that a file of this content names. Raises `Refused`.

    One a line, as names and versions: neither options nor addresses, which would lead elsewhere than to the index.
    """
    if len(content) > MAX_BYTES:
        raise Refused(f"must be at most {MAX_BYTES} bytes")
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise Refused("must be UTF-8") from None
    found = set()
    for number, line in enumerate(lines, 1):
        wanted = _COMMENT.sub("", line).replace("\t", " ").strip()
        if not wanted:
            continue
        if wanted.startswith("-"):
            raise Refused(f"must name packages only, and line {number} is an option")
        try:
            if len(wanted) > _LONGEST or not wanted.isprintable():
                raise InvalidRequirement
            requirement = Requirement(wanted)
        except (InvalidRequirement, RecursionError):
            raise Refused(f"must name packages, and line {number} is none: {wanted[:100]!a}") from None
        if requirement.url or _is_path(requirement):
            raise Refused(f"must name packages of the index, and line {number} leads elsewhere")
        requirement.name = canonicalize_name(requirement.name)
        found.add(str(requirement))
    return sorted(found)


@dataclass(frozen=True)
class Layer:
    """A layer that a job uses; nobody removes it until this is closed."""

    path: Path
    _lock: int

    def close(self) -> None:
        os.close(self._lock)


@dataclass
class _Build:
    """A layer that is being made, and how many wait for it."""

    task: asyncio.Task[None]
    waiting: int = 0


def _is_path(requirement: Requirement) -> bool:
    """Whether pip would look for a file of this name: what is compared as text can hold anything."""
    return requirement.name.lower().endswith(_ARCHIVES) or any(item.operator == "===" for item in requirement.specifier)


class Packages:
    """The layers of one host, and their making."""

    def __init__(
        self, folder: Path, options: Options, min_free: float, python: str | None, install: Sequence[str]
    ) -> None:
        """`min_free` are the bytes that are left free of the disk, `python` is the interpreter that jobs run.

        `install` is a command that is given a folder, the bytes that a file may have, that interpreter, and
        requirements, with the index in its environment (PIP_INDEX_URL), and installs them into the folder, beside which
        it may have others of that name with an ending. With the folder alone it removes all of these.
        """
        self._folder, self._options, self._min_free = folder, options, min_free
        self._python, self._install = python, install
        self._building: dict[str, _Build] = {}
        self._turns = Turns(_BUILDS)

    async def layer(self, user_id: int, requirements: Sequence[str], create_log: Callable[[], int], most: int) -> Layer:
        """The layer of these, made if it is not there; to be closed. Raises `NotInstalled`.

        What pip says goes into the file that `create_log` opens, up to `most` bytes; but where it is made for another
        job just now, into that one's.
        """
        if not self._options.index:
            raise NotInstalled(f"{FILE} cannot be installed: the service's operator has allowed no index.")
        if self._python is None:
            raise NotInstalled(f"{FILE} cannot be installed: this runner has no Python.")
        path = self._folder / await asyncio.to_thread(self._key, requirements)
        while (layer := _use(path)) is None:
            build = self._building.get(path.name)
            if build is not None:
                await self._wait_for(path.name, build, AS_ANOTHER)
            else:
                task = asyncio.create_task(self._build(user_id, path, requirements, create_log, most))
                build = self._building[path.name] = _Build(task)
                await self._wait_for(path.name, build)
        return layer

    async def _wait_for(self, name: str, build: _Build, instead: str = "") -> None:
        """Until it is done; it ends when nobody waits any more. `instead` is told where it could not be done."""
        build.waiting += 1
        try:
            await asyncio.shield(build.task)
        except NoRoom:
            raise
        except NotInstalled as error:
            raise NotInstalled(instead or str(error)) from None
        finally:
            build.waiting -= 1
            if not build.waiting:
                del self._building[name]  # whoever comes now has to begin anew
                build.task.cancel()

    def _key(self, requirements: Sequence[str]) -> str:
        assert self._python is not None
        status = os.stat(self._python)
        interpreter = [os.path.realpath(self._python), status.st_size, status.st_mtime_ns]
        return hashlib.sha256(orjson.dumps([*requirements, interpreter, self._options.index])).hexdigest()

    async def _build(
        self, user_id: int, path: Path, requirements: Sequence[str], create_log: Callable[[], int], most: int
    ) -> None:
        await self._turns.take(user_id)
        try:
            lock = await _hold(path)
            if lock is None:
                return
            try:
                if not await asyncio.to_thread(path.is_dir):
                    await self._make(path, lock, requirements, create_log, most)
            finally:
                os.close(lock)
        finally:
            self._turns.give(user_id)

    async def _make(
        self, path: Path, note: int, requirements: Sequence[str], create_log: Callable[[], int], most: int
    ) -> None:
        building = path.with_name(f"{path.name}.{uuid.uuid4().hex}")  # it is pip's account's, as is all in it
        limit = int(self._options.max_size)
        await asyncio.to_thread(self._look_for_room, limit)
        try:
            await self._run([str(building), str(limit), self._python or "", *requirements], create_log, most)
            size = await asyncio.to_thread(_size, building)
            if size > limit:
                raise NotInstalled(f"The packages of {FILE} take {size} bytes, and {limit} are the most.")
            os.truncate(note, 0)
            os.pwrite(note, b"%d" % size, 0)
            await asyncio.to_thread(building.rename, path)
        finally:
            await self._remove(building)
        logger.info("installed %d packages into the layer %s", len(requirements), path.name)

    def _look_for_room(self, size: int) -> None:
        if shutil.disk_usage(self._folder).free < self._min_free + size:
            raise NoRoom(f"There is no room on the runner's disk for the packages of {FILE}.")
        # The scheduler removes once a minute what is beyond: until then there may be some more, and those being made.
        if sum(map(_noted_size, self._folder.glob(f"*{_USED}"))) > self._options.total_size + size:
            raise NoRoom(f"There is no room for the packages of {FILE} beside those of others; try again later.")

    async def _remove(self, building: Path) -> None:
        process = await asyncio.create_subprocess_exec(*self._install, str(building), stdin=asyncio.subprocess.DEVNULL)
        try:
            async with asyncio.timeout(_REMOVAL):
                await process.wait()
        except TimeoutError:
            process.kill()
            logger.warning("%s could not be removed yet", building)

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


def remove_old(folder: Path, keep_days: float, most: float) -> None:
    """Remove layers that no job has used for so long, and those that are too many: all together have `most` bytes.

    And what is left of those that were not finished. What a job uses just now stays.
    """
    now, used, taken = time.time(), [], 0
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another scheduler is faster
            days = (now - path.stat().st_mtime) / 86_400
            if path.suffix == _USED:
                used.append((days, path))
            elif days > _UNFINISHED_DAYS and not _note(path).exists():
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    for days, note in sorted(used):
        taken += _noted_size(note)
        if days > keep_days or taken > most:
            _remove_layer(note)


def _remove_layer(note: Path) -> None:
    lock = _lock(note, os.O_RDONLY, fcntl.LOCK_EX)
    if lock is None:
        return
    try:
        # All of it goes at once, or it would be there in part when removing it is cut short.
        going = note.with_name(f"old-{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):
            note.with_suffix("").rename(going)
        note.unlink()
    finally:
        os.close(lock)
    shutil.rmtree(going, ignore_errors=True)  # what is left goes as what was not finished


def _note(layer: Path) -> Path:
    return layer.with_name(layer.name + _USED)


def _noted_size(note: Path) -> int:
    with contextlib.suppress(OSError, ValueError):  # it is being made, or its disk has lost it
        return int(note.read_bytes())
    return 0


def _use(path: Path) -> Layer | None:
    """A layer, if it is there; then it stays for a while longer."""
    lock = _lock(_note(path), os.O_RDONLY, fcntl.LOCK_SH)
    if lock is None:
        return None
    layer = Layer(path, lock)
    if not path.is_dir():
        layer.close()
        return None
    with contextlib.suppress(OSError):  # it is another account's
        os.utime(lock)
    return layer


async def _hold(path: Path) -> int | None:
    """A descriptor with which nobody else on this host makes the same layer, until it is closed; None: it is there."""
    while True:
        lock = _lock(_note(path), os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
        if lock is not None:
            return lock
        if layer := _use(path):  # another runner has made it meanwhile, and jobs use it
            layer.close()
            return None
        await asyncio.sleep(_LOOK)


def _lock(note: Path, flags: int, how: int) -> int | None:
    """A descriptor of this file with a lock on it; None where others have it, or it is not there."""
    try:
        file = os.open(note, flags | os.O_CLOEXEC, 0o640)  # the scheduler's account looks at it
    except FileNotFoundError:
        return None
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, how | fcntl.LOCK_NB)
        if os.fstat(file).st_nlink:
            return file
    os.close(file)
    return None


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))
