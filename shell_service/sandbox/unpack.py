"""The files that a job is given, unpacked into its home: by a child of its init, which can do no more than the job.

Whatever an archive holds, it can harm the job alone, whose limits hold for this as well. Imported only by launchers
that start such jobs, as what it imports makes each of their forks dearer.
"""

from __future__ import annotations

import encodings.cp437  # noqa: F401 - of names in zips; later, nothing can be imported any more
import os
import shutil
import stat
import tarfile
import zipfile
import zlib  # noqa: F401 - as tarfile does only when it needs it

from . import names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

#: Files and folders that an archive may hold.
MAX_ENTRIES = 10_000


if TYPE_CHECKING:
    #: Name, content (None: it is a folder), size, and whether it may be run.
    Entry = tuple[str, IO[bytes] | None, int, bool]


class Refused(Exception):
    """An archive that is not unpacked; the message is a sentence for the job's owner."""


def unpack(descriptor: int, kind: int) -> None:
    """Unpacks an archive, of a kind of `protocol.KINDS`, into the working directory. Raises `Refused`."""
    try:
        with os.fdopen(descriptor, "rb") as file:
            for count, entry in enumerate((_tar, _tar_gz, _zip)[kind](file)):
                if count >= MAX_ENTRIES:
                    raise Refused(f"The archive holds more than {MAX_ENTRIES:,} files and folders.")
                _make(*entry)
    except OSError as error:
        raise Refused(f"The files could not be unpacked: {error.strerror or 'they are no whole archive'}.") from None
    except Refused:
        raise
    except MemoryError:
        raise Refused("The files could not be unpacked: it takes more memory than the job may use.") from None
    except Exception:  # whatever the libraries make of nonsense
        raise Refused("The files could not be unpacked: they are no whole archive, or it is encrypted.") from None


def _make(entry: str, content: IO[bytes] | None, size: int, executable: bool) -> None:
    """Makes a folder, or a file with this content, which is to be so many bytes."""
    name = entry.removeprefix("./").removesuffix("/")
    if name in ("", "."):
        return
    if problem := names.problem(name):
        raise Refused(f"The archive holds {entry[: names.MAX_BYTES]!a}: names {problem}.")
    if content is None:
        os.makedirs(name, exist_ok=True)
        return
    if folder := os.path.dirname(name):
        os.makedirs(folder, exist_ok=True)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        file = os.fdopen(os.open(name, flags, 0o755 if executable else 0o644), "wb")
    except FileExistsError:
        raise Refused(f"The archive holds {name!a} twice.") from None
    with file:
        shutil.copyfileobj(content, file, 1 << 16)
        if file.tell() != size:
            raise EOFError


def _tar(file: IO[bytes], mode: str = "r|") -> Iterator[Entry]:
    with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
        for member in tar:
            tar.members = []  # else it would keep all
            if not (member.isreg() or member.isdir()):
                raise Refused(
                    f"The archive holds {member.name[: names.MAX_BYTES]!a}, which is neither file nor folder."
                )
            yield member.name, tar.extractfile(member), member.size, bool(member.mode & 0o100)


def _tar_gz(file: IO[bytes]) -> Iterator[Entry]:
    return _tar(file, "r|gz")


def _zip(file: IO[bytes]) -> Iterator[Entry]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            mode = info.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise Refused(
                    f"The archive holds {info.filename[: names.MAX_BYTES]!a}, which is neither file nor folder."
                )
            if info.is_dir():
                yield info.filename, None, 0, False
            else:
                with archive.open(info) as content:
                    yield info.filename, content, info.file_size, bool(mode & 0o100)
