"""What a job leaves to be kept: its folder of artifacts as a tar stream (of GNU's form, without an end).

Made by the job's init when all else of the job has gone. So nobody changes anything meanwhile: what is a folder or a
file when it is looked at, and no link, is the same when it is opened. The init can do no more than the job could.
"""

from __future__ import annotations

import os
import stat

from . import names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = "artifacts"  # in the job's home
BLOCK = 512  # bytes that all in a tar is a multiple of
_MOST = 0o77777777777  # the largest number that a header holds as digits


def pack(pipe: int, most_files: int, most_bytes: int) -> tuple[int, int]:
    """Writes the artifacts of the job whose home is the working directory; how many, and how many were left out.

    Left out is what there is no room for, what is no plain file, and what has a name that cannot be told.
    """
    kept = left_out = 0
    for path in _paths(FOLDER):
        try:
            size = _pack_file(pipe, path, most_bytes) if kept < most_files else 0
        except BrokenPipeError:
            return kept, left_out + 1  # nobody takes more
        except OSError:
            size = 0
        kept += bool(size)
        left_out += not size
        most_bytes -= size
    return kept, left_out


def _paths(folder: str) -> Iterator[str]:
    """All in a folder that is no folder itself, in the order of names.

    What cannot be looked into, as it is a link or nobody may, stands there with a slash: as something that is left out.
    """
    try:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            raise NotADirectoryError
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except FileNotFoundError:
        return
    except OSError:
        yield f"{folder}/"
        return
    for name, is_folder in found:
        path = f"{folder}/{name}"
        if not is_folder:
            yield path
        elif path.count("/") < names.MAX_DEPTH:
            yield from _paths(path)
        else:
            yield f"{path}/"  # what is in it is too deep


def _pack_file(pipe: int, path: str, most: int) -> int:
    """Writes a file if it may be kept and takes at most so many bytes; how many it took."""
    name = path[len(FOLDER) + 1 :]
    if names.problem(name):
        return 0
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(file)
        mode = 0o755 if status.st_mode & 0o100 else 0o644
        head = header(name.encode(), status.st_size, mode, int(status.st_mtime))
        padding = -status.st_size % BLOCK
        size = len(head) + status.st_size + padding
        if not stat.S_ISREG(status.st_mode) or size > most:
            return 0
        _write(pipe, head)
        left = status.st_size
        while left and (sent := os.sendfile(pipe, file, None, left)):  # None: from where it is
            left -= sent
        while left:  # it was cut, which only a process without walls can do
            left -= os.write(pipe, bytes(min(left, 1 << 16)))
        _write(pipe, bytes(padding))
        return size
    finally:
        os.close(file)


def header(name: bytes, size: int, mode: int, mtime: int, kind: bytes = b"0") -> bytes:
    """What stands before a file in a tar; before one with a long name that name, as a file of its own."""
    before = b""
    if len(name) > 100:
        before = header(b"././@LongLink", len(name) + 1, 0, 0, b"L") + name + bytes(BLOCK - len(name) % BLOCK)
    start = name[:100].ljust(100, b"\0") + b"%07o\0%07o\0%07o\0" % (mode, 0, 0)
    length = b"%011o\0" % size if size <= _MOST else b"\x80" + size.to_bytes(11)
    times = b"%011o\0" % min(max(mtime, 0), _MOST)
    end = kind + bytes(100) + b"ustar  \0"
    total = sum(start) + sum(length) + sum(times) + 8 * ord(" ") + sum(end)
    return before + (start + length + times + b"%06o\0 " % total + end).ljust(BLOCK, b"\0")


def _write(pipe: int, data: bytes) -> None:
    while data:
        data = data[os.write(pipe, data) :]
