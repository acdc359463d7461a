"""The launcher's side of a network with a way out: slirp4netns, a process that speaks TCP and UDP for a namespace.

It has the launcher's uid and user namespace, no capabilities, and stands in the host's network, where it connects to
whatever it is asked for by the other end of the namespace's only interface, a tap. So a filter of frames on that tap
says what may be asked for (see `network`): behind it all routes, socket options and kinds of packets are the same.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import resource
import select
import stat
import struct

from . import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

PROGRAMS = ("/usr/bin/slirp4netns", "/usr/local/bin/slirp4netns")
NO_PROGRAM = "slirp4netns is not installed"
#: What the namespace sees of slirp4netns, in the range that RFC 2544 keeps for benchmarks, so that it hides nothing.
NETWORK, RESOLVER = "198.18.0.0/24", "198.18.0.3"
#: Of the jobs' root.
ETC = {
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "resolv.conf": f"nameserver {RESOLVER}\n",
}
#: Large packets cost least; what leaves the machine is cut by the host's own stack.
MTU = 65520
OPTIONS = (
    "--configure",
    f"--mtu={MTU}",
    f"--cidr={NETWORK}",
    "--disable-host-loopback",
    "--enable-sandbox",
    "--enable-seccomp",
)
#: Each connection or UDP peer of the user's jobs is a descriptor, and up to 256 KiB of buffers.
MAX_OPEN_FILES, MAX_MEMORY = 1024, 1 << 29
#: Seconds for slirp4netns to be ready; measured 0.01.
PATIENCE = 5.0
#: Ranges that no job may reach, as address and length of its network (RFC 6890, and by some clouds' metadata services).
BLOCKED = (
    ("0.0.0.0", 8),  # noqa: S104
    ("10.0.0.0", 8),
    ("100.64.0.0", 10),
    ("127.0.0.0", 8),
    ("168.63.129.16", 32),  # the host agent of Microsoft Azure, which hands out the machine's secrets
    ("169.254.0.0", 16),
    ("172.16.0.0", 12),
    ("192.0.0.0", 24),
    ("192.168.0.0", 16),
    ("198.18.0.0", 15),
    ("224.0.0.0", 3),  # groups, the reserved rest, broadcast
)

_TUNGETIFF, _SIOCADDRT = 0x800454D2, 0x890B
_SOCKADDR = struct.Struct("=H2x4s8x")  # struct sockaddr_in
_RTENTRY = struct.Struct("=8x16s16x16sH62x")  # struct rtentry: of it destination, mask, flags
_RTF_UP, _RTF_REJECT = 0x1, 0x200


class Slirp:
    """Made while this process has the host's network and files, connected when it has left them."""

    def __init__(self) -> None:
        """Forks the process that will be slirp4netns. Raises OSError."""
        program = next((path for path in PROGRAMS if os.access(path, os.X_OK)), None)
        if program is None:
            raise FileNotFoundError(errno.ENOENT, NO_PROGRAM)
        # The end of the first one ends slirp4netns; a byte in it lets it begin.
        life, self._life = os.pipe()
        self._ready, ready = os.pipe()
        self._said, said = os.pipe()
        launcher = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._life)
            _be(program, launcher, life, ready, said)
        #: For the end of slirp4netns.
        self.pidfd = os.pidfd_open(self.pid)
        for fd in (life, ready, said):
            os.close(fd)

    def connect(self, frames: bytes) -> None:
        """Gives this process's network namespace a way out for `frames` (see `restrict`). Raises OSError.

        This process is root in its user namespace, and slirp4netns is that, too, once it has entered that.
        """
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # else its namespaces cannot be opened
        try:
            os.write(self._life, b"g")
        except BrokenPipeError:
            pass  # it has ended, and said why
        poll = select.poll()
        poll.register(self._ready, select.POLLIN)
        if not poll.poll(PATIENCE * 1000):
            raise TimeoutError(f"slirp4netns was not ready within {PATIENCE:g} s")
        if not os.read(self._ready, 1):
            os.set_blocking(self._said, False)
            said = os.read(self._said, 1 << 16).decode(errors="replace").split("\n")
            raise OSError("slirp4netns: " + "; ".join(filter(None, said[-8:])))
        os.close(self._ready)
        os.close(self._said)
        self._tap = self._find_tap()
        self.restrict(frames)
        _refuse(BLOCKED)

    def restrict(self, program: bytes) -> None:
        """Lets only such frames out as this filter, an array of ``struct sock_filter``, returns not 0 for."""
        kernel.Filter(program).attach_to_tap(self._tap)

    def _find_tap(self) -> int:
        for number in range(3, 64):
            try:
                fd = kernel.pidfd_getfd(self.pidfd, number)
            except OSError as error:
                if error.errno == errno.EBADF:
                    continue
                raise
            try:
                fcntl.ioctl(fd, _TUNGETIFF, bytes(40))
                return fd
            except OSError:
                os.close(fd)
        raise OSError("slirp4netns has no tap")


def _be(program: str, launcher: int, life: int, ready: int, said: int) -> NoReturn:
    try:
        os.dup2(said, 1)
        os.dup2(said, 2)
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
        limits = (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
            (resource.RLIMIT_AS, MAX_MEMORY),
        )
        for limit, value in limits:
            hard = resource.getrlimit(limit)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(limit, (value, value))
        if os.geteuid() == 0:
            _make_device()
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        begin = os.read(life, 1)
        _leave_groups()  # here root may do this, there who has subordinate gids
        kernel.setns(os.open(f"/proc/{launcher}/ns/user", os.O_RDONLY), kernel.CLONE_NEWUSER)
        _leave_groups()
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, kernel.SIGKILL)  # any such change would undo it
        if begin and os.getppid() == launcher:
            os.set_inheritable(life, True)
            os.set_inheritable(ready, True)
            options = (*OPTIONS, f"--ready-fd={ready}", f"--exit-fd={life}")
            os.execve(program, ("slirp4netns", *options, str(launcher), "tap0"), {})
    except Exception as error:
        os.write(2, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(1)


def _leave_groups() -> None:
    try:
        os.setgroups([])
    except PermissionError:
        pass


def _make_device() -> None:
    # A host may keep /dev/net/tun for root. In a mount namespace of slirp4netns alone everybody may use it.
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount(None, b"/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount(b"tmpfs", b"/dev", b"tmpfs", kernel.MS_NOSUID, b"mode=0755,size=4k")
    os.mkdir("/dev/net")
    for path, number in (("/dev/net/tun", (10, 200)), ("/dev/urandom", (1, 9))):
        os.mknod(path, stat.S_IFCHR, os.makedev(*number))
        os.chmod(path, 0o666)  # noqa: S103


def _refuse(ranges: tuple[tuple[str, int], ...]) -> None:
    """For these the job is told at once that there is no way. A courtesy: the wall is the filter."""
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    for address, length in ranges:
        mask = (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF
        destination = _SOCKADDR.pack(_socket.AF_INET, _socket.inet_aton(address))
        netmask = _SOCKADDR.pack(_socket.AF_INET, mask.to_bytes(4))
        fcntl.ioctl(sock.fileno(), _SIOCADDRT, _RTENTRY.pack(destination, netmask, _RTF_UP | _RTF_REJECT))
    sock.close()
