"""The launcher's own namespaces, and in them the root that its user's jobs see."""

from __future__ import annotations

import _socket
import fcntl
import os
import stat
import struct

from . import kernel
from .kernel import MS_BIND, MS_NODEV, MS_NOSUID, MS_PRIVATE, MS_RDONLY, MS_REC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: Inside the launcher: the jobs' root. The host's /proc stands beside it, as a new one can be mounted only then.
ROOT = b"/root"
#: There, too: the folder of layers, of which a job sees one at most.
LAYERS = b"/layers"

DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
LINKS = {
    "dev/fd": "/proc/self/fd",
    "dev/stdin": "/proc/self/fd/0",
    "dev/stdout": "/proc/self/fd/1",
    "dev/stderr": "/proc/self/fd/2",
    "var/tmp": "../tmp",
}
ETC = {
    "passwd": "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\njob:x:1000:1000:job:/job:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\njob:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost job\n::1 localhost job\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
COPIES = ("etc/ld.so.cache", "etc/localtime")
BINDS = ("usr", "etc/alternatives", "etc/ssl/certs")
# Links into /usr where a distribution has merged them, folders where it has not.
PROGRAMS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
TARGETS = ("proc", "job", "tmp", "dev/shm", "run/job", "run/packages")


def enter(uid: int, gid: int, etc: dict[str, str], layers: bytes = b"") -> None:
    """Moves this process into namespaces of its own with the prepared root. Raises OSError.

    In them it is root, but outside, where root does this, `uid` and `gid`, else whoever it was. `etc` are files beside
    those of `ETC`, or instead of them; the folder `layers`, if it is given, is at `LAYERS` then. The network stays the
    host's.
    """
    if os.geteuid() == 0:
        _enter_files(True, etc, layers)
        _become(uid, gid)
        _be_root_within()
        # Mounts that another user namespace has made cannot be moved away from; a job makes its root of this one.
        kernel.unshare(kernel.CLONE_NEWNS)
        kernel.mount(ROOT, ROOT, None, MS_BIND | MS_REC)
    else:
        _be_root_within()
        _enter_files(False, etc, layers)


def enter_mapped(ask: Callable[[], None], etc: dict[str, str], layers: bytes = b"") -> None:
    """As `enter`, but `ask` has somebody who may do so say which uid root is in the user namespace."""
    kernel.unshare(kernel.CLONE_NEWUSER)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # lost with any such change; without it /proc/self is root's
    ask()
    held = _leave_mounts(layers)  # while this may still pass through the folders above
    _become(0, 0)
    _make_files(False, etc, held)


def _be_root_within() -> None:
    """Moves this process into a user namespace that knows its own user only, there as root."""
    uid, gid = os.getuid(), os.getgid()
    kernel.unshare(kernel.CLONE_NEWUSER)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
    map_user(0, uid, gid)


def _become(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def leave_network() -> None:
    """Moves this process into an empty network namespace, which its user namespace owns. Raises OSError."""
    kernel.unshare(kernel.CLONE_NEWNET)
    _loopback_up()
    _keep_no_time_wait()


def _enter_files(privileged: bool, etc: dict[str, str], layers: bytes) -> None:
    _make_files(privileged, etc, _leave_mounts(layers))


def _leave_mounts(layers: bytes) -> int:
    """Moves this process into mounts of its own; a descriptor there of the folder `layers`, if it is given."""
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount(None, b"/", None, MS_REC | MS_PRIVATE)
    return os.open(layers, os.O_PATH | os.O_DIRECTORY) if layers else -1  # it may be below what is covered next


def _make_files(privileged: bool, etc: dict[str, str], held: int) -> None:
    base = b"/tmp"  # any folder that exists on every machine; nothing is taken from it
    kernel.mount(b"tmpfs", base, b"tmpfs", MS_NOSUID, b"mode=0755,size=4m,nr_inodes=1k")
    _build(os.fsdecode(base + ROOT), privileged, ETC | etc)
    os.mkdir(base + b"/proc")
    kernel.mount(b"/proc", base + b"/proc", None, MS_BIND | MS_REC)
    if held >= 0:
        os.mkdir(base + LAYERS)
        kernel.mount(b"/proc/self/fd/%d" % held, base + LAYERS, None, MS_BIND)
        kernel.lock_down(base + LAYERS, MS_RDONLY | MS_NOSUID | MS_NODEV)
        os.close(held)
    kernel.change_root(base)


def map_user(inside: int, uid: int, gid: int, proc: int | None = None) -> None:
    """Gives this process's user, in the user namespace that it has just entered, the number `inside`.

    `uid` and `gid` are its numbers in the parent; `proc` is a /proc other than that of the root.
    """
    base = "/proc/" if proc is None else ""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{inside} {uid} 1"), ("gid_map", f"{inside} {gid} 1")):
        write(f"{base}self/{name}", text.encode(), at=proc)


def write(path: str | bytes, data: bytes, create: int = 0, at: int | None = None) -> None:
    """Writes all of a file, a new one with mode `create`, if that is given; a relative path is from the folder `at`."""
    fd = os.open(path, os.O_WRONLY | (os.O_CREAT | os.O_EXCL if create else 0), create, dir_fd=at)
    while data:
        data = data[os.write(fd, data) :]
    os.close(fd)


def _build(root: str, privileged: bool, etc: dict[str, str]) -> None:
    os.mkdir(root)
    kernel.mount(b"tmpfs", root.encode(), b"tmpfs", MS_NOSUID, b"mode=0755,size=4m,nr_inodes=1k")
    for target in TARGETS:
        os.makedirs(f"{root}/{target}")
    os.makedirs(f"{root}/etc/ssl")
    os.mkdir(f"{root}/var")
    for name, text in etc.items():
        _write(f"{root}/etc/{name}", text.encode())
    for path in COPIES:
        if os.path.isfile(f"/{path}"):
            with open(f"/{path}", "rb") as file:
                _write(f"{root}/{path}", file.read())
    for name, target in LINKS.items():
        os.symlink(target, f"{root}/{name}")
    for name, (major, minor) in DEVICES.items():
        _device(f"{root}/dev/{name}", os.makedev(major, minor) if privileged else None)
    for path in (*BINDS, *PROGRAMS):
        if os.path.islink(f"/{path}"):
            os.symlink(os.readlink(f"/{path}"), f"{root}/{path}")
        elif os.path.isdir(f"/{path}"):
            os.mkdir(f"{root}/{path}")
            shown = f"{root}/{path}".encode()
            kernel.mount(f"/{path}".encode(), shown, None, MS_BIND | MS_REC)
            kernel.lock_down(shown, MS_RDONLY | MS_NOSUID | MS_NODEV)
    kernel.lock_down(root.encode(), MS_RDONLY | MS_NOSUID)


def _device(path: str, number: int | None) -> None:
    if number is not None:
        os.mknod(path, stat.S_IFCHR | 0o666, number)
        os.chmod(path, 0o666)  # noqa: S103 - everybody may use these
    else:  # an ordinary user may not make one, but may show the host's
        _write(path, b"")
        kernel.mount(f"/dev/{os.path.basename(path)}".encode(), path.encode(), None, MS_BIND)


def _write(path: str, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
    os.chmod(path, 0o444)


def _loopback_up() -> None:
    siocsifflags, iff_up = 0x8914, 1
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    fcntl.ioctl(sock.fileno(), siocsifflags, struct.pack("16sH14x", b"lo", iff_up))
    sock.close()


def _keep_no_time_wait() -> None:
    # The user's jobs share this network namespace one after the other, and should find each port free.
    try:
        with open("/proc/sys/net/ipv4/tcp_max_tw_buckets", "w") as file:
            file.write("0")
    except OSError:
        pass  # an older kernel keeps one value for all namespaces
