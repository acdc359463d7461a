"""How much memory processes hold together, by ``/proc``: each byte once, whoever shares it.

Only asking for each page of each mapping, and for each open file, can tell. Of these a job can have millions, so
everything here goes on in small steps, between which whoever asks can turn to others.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Collection, Generator, Iterable, Iterator
from dataclasses import dataclass

_CHUNK = 1 << 16  # bytes asked for at once; the kernel gives a page of them
_FILES = 32  # open files between two steps
_STATUS = re.compile(rb"^(VmRSS|RssAnon|RssShmem|VmSwap|VmPTE):\s+(\d+)", re.MULTILINE)
_SHARES = re.compile(rb"^(Pss_Anon|Pss_Shmem|SwapPss):\s+(\d+)", re.MULTILINE)
# Of each mapping of a file: its device and inode, its share, and what of it a private mapping has changed.
_MAPPING = re.compile(
    rb"^[0-9a-f]+-\S+ \S+ \S+ (\w+):(\w+) ([1-9]\d*)(?: .*)?\n"
    rb"(?:[A-Z].*\n)*?Pss:\s+(\d+) kB\n"
    rb"(?:[A-Z].*\n)*?Anonymous:\s+(\d+) kB\n",
    re.MULTILINE,
)
_LAST_OF_A_MAPPING = b"\nVmFlags:"
# A process maps each of its pages once, as a rule. One that has far more mapped than it may have in memory, or page
# tables for it, is not asked for them: it takes the kernel 20 ms for a GiB, and as long for tables of 32 MiB.
_SLACK, _TABLE_EFFORT = 1 << 30, 32

File = tuple[int, int]  # device and inode


@dataclass(frozen=True)
class Held:
    """What the kernel's counters say of a process, in bytes; they tell at once, but not what is shared."""

    mapped: int = 0
    private: int = 0
    shared: int = 0
    tables: int = 0

    @property
    def total(self) -> int:
        """All of it: at least the process' share."""
        return self.private + self.shared

    @property
    def effort(self) -> int:
        """How much is to be looked at for the share."""
        return self.mapped + _TABLE_EFFORT * self.tables


def held(pid: int) -> Held:
    """Of a process now; nothing if it has ended."""
    kilobytes = _lines(pid, "status", _STATUS) or {}
    mapped, anonymous, shared, swapped, tables = (
        kilobytes.get(name, 0) * 1024 for name in (b"VmRSS", b"RssAnon", b"RssShmem", b"VmSwap", b"VmPTE")
    )
    # A page of tables for each 2 MiB that was touched, even if only read: then nothing else is to be seen of these.
    return Held(mapped, anonymous + swapped + tables, shared, tables)


def open_memory_files(processes: Iterable[int], files: dict[File, int]) -> Iterator[int]:
    """Adds the bytes of each file of memfd_create(2), and the like, that some process holds open; all so far."""
    total = 0
    for pid in processes:
        with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as found:  # ended, or may not be asked
            for number, entry in enumerate(found, 1):
                with contextlib.suppress(OSError):
                    status = entry.stat()
                    if status.st_dev == _device_of_memory_files() and status.st_blocks:
                        file, size = (status.st_dev, status.st_ino), status.st_blocks * 512
                        total += size - files.get(file, 0)
                        files[file] = size
                if number % _FILES == 0:
                    yield total
        yield total


def memory(
    processes: Iterable[int], files: Collection[File], devices: Collection[int], stored: int, enough: int
) -> Generator[int, None, int]:
    """Bytes of the processes' memory, and of these files and those on these devices, which are `stored` bytes.

    As long as it goes on it says how much there is at least. Up to `enough`, files that are mapped may count twice.
    """
    total, at_least, sharing = stored, stored, dict[int, int]()
    for pid in processes:
        share, of_files, certain = _share(pid, enough)
        total += share
        at_least += certain
        if of_files:
            sharing[pid] = of_files
        yield at_least
    if total > enough and (files or devices):
        for pid, of_files in sharing.items():
            mapped = 0
            for size in _mapped(pid, files, devices):
                mapped += size
                yield at_least
            total -= min(of_files, mapped)
    return total


def _share(pid: int, enough: int) -> tuple[int, int, int]:
    """Bytes that count for a process, those of them that may be of files, and those that certainly are its own."""
    counted = held(pid)
    shares = _lines(pid, "smaps_rollup", _SHARES) if counted.effort <= enough + _SLACK else None
    if shares is None:
        return counted.total, 0, 0
    of_files = shares.get(b"Pss_Shmem", 0) * 1024
    own = counted.tables + (shares.get(b"Pss_Anon", 0) + shares.get(b"SwapPss", 0)) * 1024
    return own + of_files, of_files, own


def _mapped(pid: int, files: Collection[File], devices: Collection[int]) -> Iterator[int]:
    """By and by the bytes of a process' share that are the own contents of these files."""
    rest = b""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps", "rb", buffering=0) as smaps:
        while chunk := smaps.read(_CHUNK):
            text, last, tail = (rest + chunk).rpartition(_LAST_OF_A_MAPPING)
            rest = last + tail
            size = 0
            for major, minor, inode, share, changed in _MAPPING.findall(text + b"\n"):
                device = os.makedev(int(major, 16), int(minor, 16))
                if device in devices or (device, int(inode)) in files:
                    size += max(0, int(share) - int(changed)) * 1024
            yield size


def _lines(pid: int, name: str, lines: re.Pattern[bytes]) -> dict[bytes, int] | None:
    """The numbers of these lines; None where they may not be read."""
    try:
        with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
            return {key: int(value) for key, value in lines.findall(file.readall())}
    except PermissionError:
        return None
    except OSError:
        return {}


@functools.cache
def _device_of_memory_files() -> int:
    """The file system in which the kernel has files without a name, and memory that is shared without a file."""
    descriptor = os.memfd_create("device", os.MFD_CLOEXEC)
    try:
        return os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)
