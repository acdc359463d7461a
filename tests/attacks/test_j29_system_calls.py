"""J29: every system call that there is, whether the filter refuses it, and with what.

That a call fails does not tell that it was refused: most of these would fail for lack of a privilege, or for want of an
argument. So the job puts a filter of its own behind ours, which it may: of two answers the kernel takes the stricter,
and asking a supervisor is weaker than an error. The supervisor answers EXDEV to every call that came as far as to him:
no call of this test ever reaches the kernel's own code, and each answer that is not EXDEV is our filter's.
"""

from __future__ import annotations

import json
import os

import pytest

from shell_service.sandbox import seccomp
from tests.attacks.jobs import ended, findings, number, numbers, output, submit
from tests.client import Person

PROBE = """
import struct, threading
SIXTH = 0x5CA1AB1E  # the argument by which the supervised calls are known: no call that is looked at has six
code = [(0x20, 0, 0, 56), (0x15, 0, 1, SIXTH), (0x06, 0, 0, 0x7FC00000), (0x06, 0, 0, 0x7FFF0000)]
text = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
program = Program(len(code), ctypes.addressof(text))
listener, ready = [], threading.Event()

def supervise():
    ready.wait()
    RECEIVE, SEND = 0xC0502100, 0xC0182101
    while True:
        asked = ctypes.create_string_buffer(80)
        if libc.ioctl(listener[0], ctypes.c_ulong(RECEIVE), asked) < 0:
            return
        answer = struct.pack("=QqiI", struct.unpack_from("=Q", asked)[0], 0, -errno.EXDEV, 0)
        libc.ioctl(listener[0], ctypes.c_ulong(SEND), ctypes.create_string_buffer(answer, 24))

threading.Thread(target=supervise, daemon=True).start()
fd = libc.syscall(ctypes.c_long(GIVEN["seccomp"]), ctypes.c_long(1), ctypes.c_long(8), ctypes.byref(program))
tell("supervised", lambda: "worked" if fd >= 0 else errno.errorcode[ctypes.get_errno()])
listener.append(fd)
ready.set()

def refusal(number, *arguments):
    "With what the filter refuses a call; None if it does not."
    given = [*arguments, *[0] * (5 - len(arguments)), SIXTH]
    result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, given))
    return None if (code := ctypes.get_errno()) == errno.EXDEV and result < 0 else errno.errorcode[code]
"""

#: Written down apart from the filter, so that what is changed there has to be changed here.
EPERM = """
    ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp add_key request_key keyctl bpf
    perf_event_open userfaultfd mount umount2 pivot_root chroot unshare setns swapon swapoff name_to_handle_at
    open_by_handle_at kexec_load kexec_file_load init_module finit_module delete_module quotactl quotactl_fd acct syslog
    lookup_dcookie nfsservctl vhangup reboot mbind set_mempolicy get_mempolicy migrate_pages move_pages
    set_mempolicy_home_node clock_settime clock_adjtime settimeofday adjtimex sethostname setdomainname iopl ioperm
    modify_ldt fanotify_init memfd_secret sched_setaffinity ioprio_set
""".split()  # noqa: SIM905 a table
ENOSYS = """
    clone3 fsopen fsconfig fsmount fspick open_tree move_mount mount_setattr io_uring_setup io_uring_enter
    io_uring_register io_setup
""".split()  # noqa: SIM905
#: uretprobe and uprobe of x86_64: the kernel shows them to no filter, and kills who calls them by himself.
UNFILTERED = {335, 336} if os.uname().machine == "x86_64" else set()
SYSTEM_V = ["shmget", "msgget", "semget"]  # not there where nobody may limit them
SESSIONS = ["setsid"]  # not to be had where each gets its own share of the processors


def test_every_number(alice: Person) -> None:
    """The table of calls, up to numbers that no kernel has yet, with no arguments and with such as are none."""
    code = (
        PROBE
        + """
for kind, arguments in (("zero", [0] * 5), ("minus one", [-1] * 5)):
    tell(kind, lambda: {n: answer for n in GIVEN["numbers"] if (answer := refusal(n, *arguments))})
"""
    )
    high = [1 << 16, 1 << 30, (1 << 31) - 1, *(0x40000000 | n for n in range(600))]  # the last are x32's
    table = set(range(700)) - UNFILTERED
    found = findings(alice, code, {"seccomp": number("seccomp"), "numbers": [*table, *high]})
    assert found.pop("supervised") == "worked"
    refused = {str(n): "EPERM" for n in numbers(*EPERM).values()}
    refused |= {str(n): "ENOSYS" for n in (*numbers(*ENOSYS).values(), *range(seccomp.NEWEST + 1, 700), *high)}
    system_v = {str(n) for n in numbers(*SYSTEM_V).values()}
    sessions = {str(n) for n in numbers(*SESSIONS).values()}
    by_argument = {str(n) for n in numbers("socket", "socketpair", "clone", "personality", "ioctl").values()}
    for answers in found.values():
        assert {answer for n, answer in answers.items() if n in system_v} <= {"ENOSYS"}
        assert {answer for n, answer in answers.items() if n in sessions} <= {"EPERM"}
        assert {n: a for n, a in answers.items() if n not in system_v | sessions | by_argument} == refused
    assert seccomp.NEWEST == 450


def rows() -> list[tuple[str, list[int], str | None]]:
    """Calls of which it depends on the arguments: name, arguments, and with what they are refused."""
    unix, inet, inet6, netlink, stream, high = 1, 2, 10, 16, 1, 1 << 32
    found: list[tuple[str, list[int], str | None]] = []
    for family in range(64):
        answer = None if family in (unix, inet, inet6, netlink) else "EAFNOSUPPORT"
        found.append(("socket", [family, stream, 0], answer))
        found.append(("socket", [high | family, stream, 0], "EAFNOSUPPORT"))
        found.append(("socketpair", [family, stream, 0], None if family == unix else "EAFNOSUPPORT"))
    good = {1: (0, 6), 2: (0, 1, 17), 3: range(256)}  # by the type, the protocols of internet sockets
    for kind in range(16):
        for protocol in range(300):
            answer = None if protocol in good.get(kind, ()) else "EPROTONOSUPPORT"
            found += [("socket", [family, kind, protocol], answer) for family in (inet, inet6)]
        for flags in (0x80800, high):  # SOCK_CLOEXEC, SOCK_NONBLOCK; what the kernel does not look at
            answer = None if kind in good else "EPROTONOSUPPORT"
            found += [("socket", [family, flags | kind, flags & high], answer) for family in (inet, inet6)]
            found.append(("socket", [unix, flags | kind, 0], None))
    for protocol in range(32):
        found.append(("socket", [netlink, 3, protocol], "EPROTONOSUPPORT" if protocol else None))
    found.append(("socket", [netlink, 3, high | 1], "EPROTONOSUPPORT"))
    for bit in range(64):
        answer = "EPERM" if 1 << bit in seccomp_flags() else None
        found.append(("clone", [1 << bit if bit < 63 else -(1 << 63)], answer))
        found.append(("clone", [17 | 1 << bit if bit < 63 else -(1 << 63)], answer))
    found.append(("clone", [0x3D0F00], None))  # a thread
    for upper in (0, high, -high):
        for request, answer in ((0x5412, "EPERM"), (0x541C, "EPERM"), (0x5413, None), (0x5411, None), (0x541B, None)):
            found.append(("ioctl", [0, upper | request, 0], answer))
    for persona, answer in ((0, None), (8, None), (0x20008, None), (0x40000, "EPERM"), (0x400000, "EPERM"),
                            (0x100000, "EPERM"), (-1, "EPERM"), (0xFFFFFFFF, "EPERM")):  # fmt: skip
        found.append(("personality", [persona], answer))
    return found


def seccomp_flags() -> set[int]:
    """CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""
    return {0x80, 0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000}


def test_what_depends_on_arguments(alice: Person) -> None:
    code = (
        PROBE
        + """
tell("refused", lambda: [refusal(n, *arguments) for n, arguments in json.load(sys.stdin)])
"""
    )
    wanted = rows()
    calls = json.dumps([(number(name), arguments) for name, arguments, _ in wanted])
    answers = findings(alice, code, {"seccomp": number("seccomp")}, stdin=calls)["refused"]
    wrong = [(*row, answer) for row, answer in zip(wanted, answers, strict=True) if row[2] != answer]
    assert wrong == []


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the 32-bit ABI is that machine's")
@pytest.mark.parametrize("call", [20, 26, 102, 120, 400])  # getpid, ptrace, socketcall, clone, and none
def test_the_32_bit_abi_is_deadly(alice: Person, call: int) -> None:
    """By ``int 0x80``, which any 64-bit program may say. Of all threads, too."""
    code = """
import mmap, threading
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes([0xB8]) + GIVEN.to_bytes(4, "little") + bytes([0xCD, 0x80, 0xC3]))
act = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
thread = threading.Thread(target=act)
thread.start()
thread.join()
print("survived")
"""
    job = ended(alice, submit(alice, code, call))
    assert (job["status"], job["signal"], output(alice, job)) == ("FAILED", "SIGSYS", b"")


def test_what_is_harmless_works(alice: Person) -> None:
    code = """
import asyncio, ctypes.util, fcntl, glob, mmap, multiprocessing, select, selectors, shutil, signal, socket, sqlite3
import subprocess, tempfile, termios, threading, time, uuid
def threads():
    done = []
    made = [threading.Thread(target=done.append, args=(n,)) for n in range(20)]
    [one.start() for one in made], [one.join() for one in made]
    return len(done)
def spawned():
    return subprocess.run("echo $((6 * 7)) | cat", shell=True, capture_output=True, text=True).stdout
def forked():
    child = os.fork()
    if not child:
        os._exit(9)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
def pool():
    with multiprocessing.get_context("fork").Pool(2) as made:
        return made.map(abs, [-1, -2])
def memory_file():
    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.write(fd, b"abc")
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    return os.pread(fd, 3, 0).decode()
def polled():
    reader, writer = socket.socketpair()
    epoll = select.epoll()
    epoll.register(reader, select.EPOLLIN)
    writer.send(b"x")
    return len(epoll.poll(1))
async def served():
    async def answer(reader, writer):
        writer.write(await reader.readline())
        writer.close()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello\\n")
    return (await reader.readline()).decode()
def shared():
    with mmap.mmap(-1, 4096) as page:
        if not os.fork():
            page[0] = 7
            os._exit(0)
        os.wait()
        return page[0]
def stored():
    with sqlite3.connect("/job/x.db") as connection:
        connection.execute("CREATE TABLE t (a)")
        connection.execute("INSERT INTO t VALUES (1)")
        return connection.execute("SELECT a FROM t").fetchone()[0]
def interrupted():
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    signal.pause()
def fifo():
    os.mkfifo("/tmp/fifo")
    child = os.fork()
    if not child:
        with open("/tmp/fifo", "w") as file:
            file.write("through")
        os._exit(0)
    return open("/tmp/fifo").read()
def files():
    os.makedirs("/job/a/b")
    for act in (os.symlink, os.link):
        open("/job/f", "w").write("x")
        act("/job/f", f"/job/{act.__name__}")
    os.chmod("/job/f", 0o640), os.utime("/job/f"), os.rename("/job/f", "/job/g"), os.truncate("/job/g", 100)
    os.posix_fallocate(os.open("/job/g", os.O_RDWR), 0, 4096)
    fcntl.flock(os.open("/job/g", os.O_RDWR), fcntl.LOCK_EX)
    os.copy_file_range(os.open("/job/g", os.O_RDONLY), os.open("/job/h", os.O_RDWR | os.O_CREAT), 10)
    os.sendfile(os.open("/job/h", os.O_RDWR), os.open("/job/g", os.O_RDONLY), 0, 10)
    shutil.rmtree("/job/a")
    return os.stat("/job/g").st_size
for name, act in (("threads", threads), ("spawned", spawned), ("forked", forked), ("pool", pool), ("polled", polled),
                  ("memory file", memory_file), ("served", lambda: asyncio.run(served())), ("shared", shared),
                  ("stored", stored), ("interrupted", interrupted), ("fifo", fifo), ("files", files)):
    tell(name, act)
for name, act, *arguments in (
    ("eventfd", os.eventfd, 0), ("pidfd", os.pidfd_open, os.getpid()), ("random", os.urandom, 8),
    ("inotify", libc.inotify_init1, 0), ("timer", libc.timerfd_create, 1, 0), ("processors", os.sched_getaffinity, 0),
    ("yield", os.sched_yield), ("times", os.times), ("terminal size", lambda: shutil.get_terminal_size().columns),
    ("persona", libc.personality, 0), ("group", os.getpgid, 0), ("session", os.getsid, 0), ("umask", os.umask, 0o22),
    ("nicer", os.nice, 1), ("chdir", os.chdir, "/tmp"), ("interfaces", lambda: len(socket.if_nameindex()) > 0),
    ("priority", os.sched_setscheduler, 0, os.SCHED_BATCH, os.sched_param(0)), ("sync", os.sync),
):
    tell(name, act, *arguments)
"""
    found = findings(alice, code)
    expected = {
        "threads": 20, "spawned": "42\n", "forked": 9, "pool": [1, 2], "polled": 1, "memory file": "abc",
        "served": "hello\n", "shared": 7, "stored": 1, "interrupted": None, "fifo": "through", "files": 4096,
    }  # fmt: skip
    assert {name: found.pop(name) for name in expected} == expected
    assert {name: a for name, a in found.items() if a == -1 or (isinstance(a, str) and a != "worked")} == {}
    assert len(found) == 18
