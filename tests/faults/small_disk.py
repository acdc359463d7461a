"""A small disk in place of a folder, for the processes that enter: to see what a full one does to them.

It is a file system in memory in a namespace that this program, run by `SmallDisk`, makes and holds. That works without
root: then it is also a user namespace, in which everybody keeps his own uid.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_PR_SET_DUMPABLE = 4


class SmallDisk:
    """A disk of `size` bytes in place of `folder`, with what that holds, for as long as the block."""

    def __init__(self, folder: Path, size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, str(folder), str(size)]
        self._holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout and self._holder.stdout.readline() == b"ready\n"
        #: The folder as those see it who have entered.
        self.folder = Path(f"/proc/{self._holder.pid}/root{folder}")
        self._filler = self.folder / "filler"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holder.communicate(timeout=10)

    def enter(self) -> None:
        """To be called by a new process before all else: from then on it sees the disk."""
        kinds = ("mnt",) if os.geteuid() == 0 else ("user", "mnt")
        held, where = [os.open(f"/proc/{self._holder.pid}/ns/{kind}", os.O_RDONLY) for kind in kinds], os.getcwd()
        for descriptor in held:
            _call("setns", descriptor, 0)
            os.close(descriptor)
        os.chdir(where)

    def fill(self) -> None:
        """Leave no room."""
        with self._filler.open("ab") as file:
            while room := os.statvfs(self._filler).f_bavail * os.statvfs(self._filler).f_frsize:
                with contextlib.suppress(OSError):  # somebody else has taken some of it just now
                    os.posix_fallocate(file.fileno(), file.tell(), room)
                file.seek(0, os.SEEK_END)

    def free(self) -> None:
        """Give the room back that `fill` took."""
        self._filler.unlink()


def _hold(folder: str, size: str) -> None:
    uid, gid = os.geteuid(), os.getegid()
    _call("unshare", _CLONE_NEWNS | (_CLONE_NEWUSER if uid else 0))
    if uid:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            Path(f"/proc/self/{name}").write_text(text)
        _call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)  # so that others of this uid may look into our namespace
    _call("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
    before = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    about = os.fstat(before)
    options = f"size={size},mode={about.st_mode & 0o7777:o},uid={about.st_uid},gid={about.st_gid}"
    _call("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options.encode())
    subprocess.run(["cp", "-a", f"/proc/self/fd/{before}/.", folder], check=True, pass_fds=(before,))
    os.close(before)
    print("ready", flush=True)
    sys.stdin.read()  # until the one who started us closes it, or ends


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    _hold(*sys.argv[1:])
