"""Uploads: files that jobs are given. Each is stored once, whoever sends it, under the SHA-256 of what it holds.

What came as single files is stored as a tar, an archive as it came: it is only ever unpacked by the jobs, behind their
walls. It stays as long as a job or a version of a script refers to it, and an hour.

A file stands in the folder before its row is committed, and goes before the row's end is; whoever does either holds the
row. Files that are being written lie beside the others, locked by whoever writes them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import tarfile
import threading
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
from sqlalchemy import text
from sqlalchemy.orm import Session

from baselayer.errors import Conflict, InvalidRequest, TooLarge, Unavailable
from shell_service import packages
from shell_service.sandbox import names
from shell_service.settings import Uploads as Bounds
from shell_service.shells import AUTO, ENDINGS

MAX_FILES = 10_000
_FRESH = 3600  # seconds that an upload stays which nothing refers to
_USER_LOCK = 7_303  # first key of the advisory lock of whoever adds up what a user has sent
_AT_ONCE = 100  # uploads that one transaction removes
_LOOK = 64 << 20  # bytes after which it is looked again whether there is room


@dataclass(frozen=True)
class File:
    """One of the files of an upload."""

    path: str
    size: int
    sha256: str
    #: Whether it begins with ``#!``.
    own_line: bool


@dataclass(frozen=True)
class Upload:
    """An upload. `files` are those that came one by one, by their paths; None: it came as an archive."""

    digest: str
    kind: str
    size: int
    files: Mapping[str, File] | None
    #: Packages that a requirements.txt among the files names; None where there is none.
    requirements: Sequence[str] | None = None


class UploadStore:
    """The folder of uploads."""

    def __init__(self, folder: Path, bounds: Bounds, min_free: int) -> None:
        """`min_free` are bytes that have to stay free on its file system."""
        self.folder, self._bounds, self._min_free = folder, bounds, min_free
        self._incoming = folder / "incoming"

    def path(self, digest: str, kind: str) -> Path:
        """Where an upload is, or would be."""
        return self.folder / digest[:2] / f"{digest}.{kind}"

    def receive(self, size: int | None = None) -> Incoming:
        """Take a new one, of about so many bytes if that is known. Raises `Unavailable` where there is no room."""
        try:
            self._incoming.mkdir(mode=0o750, exist_ok=True)
            incoming = Incoming(self._incoming / uuid.uuid4().hex, self._bounds, self._min_free)
            try:
                incoming.find_room(self._bounds.max_size if size is None else size)
            except Unavailable:
                incoming.close()
                raise
            return incoming
        except OSError as error:
            raise Unavailable(f"Uploads cannot be stored at the moment: {error.strerror}.") from error

    def place(self, incoming: Incoming, upload: Upload) -> None:
        """Put what has come where it belongs. Done again it changes nothing. Raises OSError."""
        path = self.path(upload.digest, upload.kind)
        path.parent.mkdir(mode=0o750, exist_ok=True)
        if incoming.path.exists() or not path.exists():
            os.replace(incoming.path, path)
        for folder in (path.parent, self.folder):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def remove(self, digest: str, kind: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path(digest, kind).unlink()

    def content(self, upload: Upload, path: str, most: int) -> bytes | None:
        """One of its files, if it is no larger than `most` bytes, and the upload no archive."""
        wanted = (upload.files or {}).get(path)
        if wanted is None or wanted.size > most:
            return None
        with tarfile.open(self.path(upload.digest, upload.kind), "r:") as tar:
            file = tar.extractfile(path)
            return None if file is None else file.read()

    def sweep(self) -> None:
        """Remove what was being written by somebody who is no more."""
        if not self._incoming.is_dir():
            return
        for path in self._incoming.iterdir():
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                except BlockingIOError:
                    pass  # it is being written

    def remove_strays(self, shard: int, known: Collection[str]) -> None:
        """Remove files in one of 256 folders that are none of `known`, and have been there for a while."""
        folder = self.folder / f"{shard:02x}"
        if not folder.is_dir():
            return
        for path in folder.iterdir():
            digest, _, kind = path.name.partition(".")
            with contextlib.suppress(FileNotFoundError):  # another scheduler was faster
                if digest not in known and time.time() - path.stat().st_mtime > _FRESH:
                    self.remove(digest, kind)


class Incoming:
    """An upload that comes in: a `baselayer.forms.Sink`. For threads: each call may wait for the disk.

    `close` it whatever happens: then nothing is left of it, unless it was placed.
    """

    def __init__(self, path: Path, bounds: Bounds, min_free: int) -> None:
        self.path, self._bounds, self._min_free = path, bounds, min_free
        # A descriptor that is closed while another thread writes to it might by then be another file's.
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        if not os.fstat(self._file).st_nlink:  # it was swept before it could be held
            os.close(self._file)
            raise FileNotFoundError(errno.ENOENT, "swept at this very moment")
        self._size = self._content = 0  # with what a tar has beside its files, and without
        self._digest = hashlib.sha256()  # of the file that is coming
        self._begun: tuple[str, int] | None = None  # its name, and where its header stands
        self._start = b""  # of its content
        self._archive: str | None = None  # its kind; before that is known, its name
        self._files: dict[str, File] = {}
        self._folders: set[str] = set()  # that they are in
        self._starts: dict[str, int] = {}  # where the content of each begins

    def find_room(self, size: int) -> None:
        """Raise `Unavailable` where so much more would leave too little."""
        room = os.statvfs(self.path.parent)
        if room.f_bavail * room.f_frsize < self._min_free + size:
            raise Unavailable("There is no room for uploads at the moment; the service's operator can make some.")

    @property
    def empty(self) -> bool:
        """Whether no file has come."""
        return not (self._files or self._archive)

    def begin(self, field: str, name: str) -> None:
        """The fields are ``archive``, which is the only one then, and ``files`` or ``files[]``."""
        self._digest, self._start = hashlib.sha256(), b""
        if field == "archive" and self.empty:
            self._archive = name
            return
        if field not in ("files", "files[]"):
            raise InvalidRequest.of({field[:64]: ["Files come in the fields files[], or one in the field archive."]})
        if self._archive:
            raise InvalidRequest.of({"archive": ["Give either an archive or files."]})
        self._begun = name, self._size
        self._check(name)
        self._append(_header(name, 0))

    def _check(self, name: str) -> None:
        problem, folders = names.problem(name), _folders(name)
        if name in self._files:
            problem = "must not come twice"
        elif name in self._folders or not folders.isdisjoint(self._files):
            problem = "must not be that of a file and of a folder"
        if problem:
            raise InvalidRequest.of({"files": [f"The name {name[:300]!a} {problem}."]})
        if len(self._files) >= MAX_FILES:
            raise InvalidRequest.of({"files": [f"At most {MAX_FILES:,} files."]})
        self._folders |= folders
        if len(self._folders) > MAX_FILES:
            raise InvalidRequest.of({"files": [f"At most {MAX_FILES:,} folders."]})

    def write(self, data: bytes) -> None:
        self._content += len(data)
        if self._content > self._bounds.max_size:
            raise TooLarge(f"An upload may take {int(self._bounds.max_size)} bytes.")
        self._digest.update(data)
        self._start = (self._start + data[:4])[:4]
        self._append(data)

    def end(self) -> None:
        if self._begun is None:
            self._archive = _kind(self._start)
            return
        name, at = self._begun
        head = len(_header(name, 0))
        size = self._size - at - head
        self._append(bytes(-size % tarfile.BLOCKSIZE))
        self._write(_header(name, size), at)
        self._files[name] = File(name, size, self._digest.hexdigest(), self._start[:2] == b"#!")
        self._starts[name] = at + head
        self._begun = None

    def _append(self, data: bytes) -> None:
        if self._size // _LOOK != (self._size + len(data)) // _LOOK:
            self.find_room(_LOOK)  # others write, too
        self._size += len(data)
        self._write(data, self._size - len(data))

    def _write(self, data: bytes, at: int) -> None:
        view = memoryview(data)
        try:
            with self._lock:
                while view:
                    count = os.pwrite(self._file, view, at)
                    view, at = view[count:], at + count
        except OSError as error:
            raise Unavailable(f"The upload could not be stored: {error.strerror}.") from error

    def finish(self) -> Upload:
        """What has come, safe on disk. Raises `Unavailable`."""
        if self._archive is None:
            self._append(bytes(2 * tarfile.BLOCKSIZE))
        try:
            with self._lock:
                os.fsync(self._file)
        except OSError as error:
            raise Unavailable(f"The upload could not be stored: {error.strerror}.") from error
        if self._archive:
            return Upload(self._digest.hexdigest(), self._archive, self._size, None)
        listed = sorted((file.path, file.size, file.sha256) for file in self._files.values())
        digest = hashlib.sha256(orjson.dumps(listed)).hexdigest()
        return Upload(digest, "tar", self._size, self._files, self._requirements())

    def _requirements(self) -> list[str] | None:
        """What a requirements.txt among the files names. Raises `InvalidRequest`."""
        file = self._files.get(packages.FILE)
        if file is None:
            return None
        try:
            return packages.parse(os.pread(self._file, min(file.size, packages.MAX_BYTES + 1), self._starts[file.path]))
        except packages.Refused as error:
            raise InvalidRequest.of({"files": [f"{packages.FILE} {error}."]}) from None

    def close(self) -> None:
        """Let go of it; what was not placed is removed."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
                self.path.unlink(missing_ok=True)


def _folders(name: str) -> set[str]:
    """All folders that a file of this name is in."""
    parts = name.split("/")
    return {"/".join(parts[:count]) for count in range(1, len(parts))}


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def _kind(start: bytes) -> str:
    if start[:2] == b"\x1f\x8b":
        return "tar.gz"
    if start in (b"PK\3\4", b"PK\5\6"):
        return "zip"
    raise InvalidRequest.of({"archive": ["Must be a .tar.gz or a .zip, and by its content it is neither."]})


# -- what is asked of one ----------------------------------------------------------------------------------------------


def check(
    upload: Upload, entrypoint: str | None, shell: str, shells: Collection[str] = tuple(ENDINGS.values())
) -> None:
    """Raise `InvalidRequest` where a job could not be run with these files, as far as that can be told by now.

    `shells` are the interpreters that there are.
    """
    errors = {}
    if entrypoint is None:
        errors["entrypoint"] = ["Must name one of the files."]
    elif problem := names.problem(entrypoint):
        errors["entrypoint"] = [f"{problem[0].upper()}{problem[1:]}."]
    elif upload.files is not None:
        file = upload.files.get(entrypoint)
        if file is None:
            errors["entrypoint"] = [f"Must name one of the files; there is no {entrypoint}."]
        elif shell == AUTO and not file.own_line and ENDINGS.get(os.path.splitext(entrypoint)[1]) not in shells:
            errors["shell"] = [f"Is needed: {entrypoint} does not begin with #!, and nothing here runs such an ending."]
    if errors:
        raise InvalidRequest.of(errors)


def check_packages(upload: Upload, index: str) -> None:
    """Raise `InvalidRequest` where it names packages, and there is no `index` that they may come from."""
    if upload.requirements and not index:
        problem = (
            f"{packages.FILE} cannot be installed: the service's operator has allowed no index. Leave it out, and "
            "bring what is needed along."
        )
        raise InvalidRequest.of({"files": [problem]})


# -- in the database ---------------------------------------------------------------------------------------------------


def keep(session: Session, store: UploadStore, incoming: Incoming, upload: Upload, user_id: int, most: int) -> None:
    """Store an upload for a user. Raises `Conflict` where all of his take more than `most` bytes then; 0: any number.

    For an hour nobody removes it, even if nothing refers to it.
    """
    if most:
        session.execute(text("SELECT pg_advisory_xact_lock(:key, :user)"), {"key": _USER_LOCK, "user": user_id})
        total = session.scalar(_OF_USER, {"user": user_id, "digest": upload.digest}) or 0
        if total + upload.size > most:
            raise Conflict(
                f"All uploads of your jobs and scripts may take {most} bytes, and they take {total}; {upload.size} "
                "more are too many. They go with the jobs and scripts that use them."
            )
    files = None if upload.files is None else [[f.path, f.size, f.sha256, f.own_line] for f in upload.files.values()]
    session.execute(
        text(
            "INSERT INTO upload (digest, kind, size, files, requirements, user_id) VALUES (decode(:digest, 'hex'),"
            " :kind, :size, CAST(:files AS jsonb), CAST(:requirements AS jsonb), :user)"
            " ON CONFLICT (digest) DO UPDATE SET used_at = clock_timestamp(), user_id = excluded.user_id"
        ),
        {
            "user": user_id,
            "digest": upload.digest,
            "kind": upload.kind,
            "size": upload.size,
            "files": None if files is None else orjson.dumps(files).decode(),
            "requirements": None if upload.requirements is None else orjson.dumps(upload.requirements).decode(),
        },
    )
    store.place(incoming, upload)


# Those that he has just sent count, too: nothing refers to them where the request was refused in the end.
_OF_USER = text(
    # From one upload to the next in the index, however many jobs were given each.
    "WITH RECURSIVE given AS ("
    " (SELECT upload FROM job WHERE user_id = :user AND upload IS NOT NULL ORDER BY upload LIMIT 1)"
    " UNION ALL SELECT (SELECT j.upload FROM job j WHERE j.user_id = :user AND j.upload > g.upload"
    "  ORDER BY j.upload LIMIT 1) FROM given g WHERE g.upload IS NOT NULL)"
    "SELECT coalesce(sum(size), 0) FROM upload WHERE digest <> decode(:digest, 'hex') AND digest IN ("
    " SELECT upload FROM given WHERE upload IS NOT NULL"
    " UNION SELECT c.upload FROM script s JOIN script_version v ON v.script_id = s.id"
    " JOIN content c ON c.digest = v.digest WHERE s.user_id = :user AND c.upload IS NOT NULL"
    f" UNION SELECT digest FROM upload WHERE user_id = :user AND used_at > now() - make_interval(secs => {_FRESH}))"
)


def find(session: Session, digest: str) -> Upload:
    """The upload of this digest, which is there."""
    statement = text("SELECT kind, size, files, requirements FROM upload WHERE digest = decode(:digest, 'hex')")
    kind, size, files, requirements = session.execute(statement, {"digest": digest}).one()
    listed = None if files is None else {item[0]: File(*item) for item in files}
    return Upload(digest, kind, size, listed, requirements)


def collect(session: Session, store: UploadStore) -> int:
    """Remove some uploads that nothing refers to any more; how many."""
    rows = session.execute(
        text(
            """
            DELETE FROM upload WHERE digest IN (
              SELECT digest FROM upload u WHERE used_at < now() - make_interval(secs => :fresh)
                AND NOT EXISTS (SELECT FROM job WHERE job.upload = u.digest)
                AND NOT EXISTS (SELECT FROM content WHERE content.upload = u.digest)
              LIMIT :most FOR UPDATE SKIP LOCKED)
            RETURNING encode(digest, 'hex') AS digest, kind
            """
        ),
        {"fresh": _FRESH, "most": _AT_ONCE},
    ).all()
    for row in rows:
        store.remove(row.digest, row.kind)
    return len(rows)


def sweep(session: Session, store: UploadStore, shard: int) -> None:
    """Remove files that no row stands for, as after the end of a process between the two: in one of 256 folders."""
    store.sweep()
    known = session.scalars(
        text("SELECT encode(digest, 'hex') FROM upload WHERE get_byte(digest, 0) = :shard"), {"shard": shard}
    ).all()
    store.remove_strays(shard, set(known))
