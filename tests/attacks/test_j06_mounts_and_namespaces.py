"""J6: mounts, other roots and other namespaces, by system calls that would do it and by the programs for it.

The calls are such as succeed for whoever may: in a user namespace of his own that is anybody.
"""

from __future__ import annotations

from tests.attacks.jobs import findings, numbers
from tests.client import Person

NAMES = ("mount", "umount2", "pivot_root", "chroot", "unshare", "setns", "clone", "clone3", "fsopen", "fsconfig",
         "fsmount", "fspick", "open_tree", "move_mount", "mount_setattr", "name_to_handle_at",
         "open_by_handle_at")  # fmt: skip
CODE = """
import subprocess
n = GIVEN
SIGCHLD, MS_BIND, MS_REMOUNT = 17, 0x1000, 0x20
def in_a_child(act, *arguments):
    "For what would change who we are."
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            act(*arguments)
            os.write(write, b"worked")
        except OSError as error:
            os.write(write, name_of(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return os.read(read, 100).decode()
def clone(flags):
    pid = libc.syscall(ctypes.c_long(n["clone"]), ctypes.c_long(flags | SIGCHLD), *[ctypes.c_long(0)] * 4)
    if pid == 0:
        os._exit(0)
    if pid < 0:
        raise OSError(ctypes.get_errno(), "")
tell("mount", call, n["mount"], b"tmpfs", b"/tmp", b"tmpfs", 0, 0)
tell("bind", call, n["mount"], b"/usr", b"/tmp", 0, MS_BIND, 0)
tell("remount", call, n["mount"], b"", b"/usr", 0, MS_BIND | MS_REMOUNT, 0)
tell("proc", call, n["mount"], b"proc", b"/tmp", b"proc", 0, 0)
tell("umount", call, n["umount2"], b"/proc/cmdline", 0)
tell("lazily", call, n["umount2"], b"/tmp", 2)
tell("pivot_root", call, n["pivot_root"], b".", b".")
tell("chroot", call, n["chroot"], b"/job")
for name, flag in (("time", 0x80), ("mnt", 0x20000), ("cgroup", 0x02000000), ("uts", 0x04000000), ("ipc", 0x08000000),
                   ("user", 0x10000000), ("pid", 0x20000000), ("net", 0x40000000)):
    tell(f"unshare {name}", in_a_child, call, n["unshare"], flag)
    tell(f"unshare user, {name}", in_a_child, call, n["unshare"], flag | 0x10000000)
    tell(f"clone {name}", clone, flag)
    tell(f"clone user, {name}", clone, flag | 0x10000000)
    for pid in ("self", "1"):
        try:
            fd = os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY)
        except OSError as error:
            tell(f"setns {pid} {name}", lambda: "EPERM" if error.errno == errno.ENOENT else name_of(error))
        else:
            tell(f"setns {pid} {name}", in_a_child, call, n["setns"], fd, flag)
tell("setns by pidfd", in_a_child, call, n["setns"], os.pidfd_open(1), 0x20000)
# flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls
tell("clone3", in_a_child, call, n["clone3"], (ctypes.c_uint64 * 8)(0x10000000, 0, 0, 0, SIGCHLD, 0, 0, 0), 64)
tell("clone3 plain", in_a_child, call, n["clone3"], (ctypes.c_uint64 * 8)(0, 0, 0, 0, SIGCHLD, 0, 0, 0), 64)
tell("fsopen", call, n["fsopen"], b"tmpfs", 0)
tell("fspick", call, n["fspick"], -100, b"/tmp", 0)
tell("open_tree", call, n["open_tree"], -100, b"/usr", 0x8001)
tell("move_mount", call, n["move_mount"], -100, b"/tmp", -100, b"/job", 0)
tell("mount_setattr", call, n["mount_setattr"], -100, b"/usr", 0, (ctypes.c_uint64 * 4)(0, 1, 0, 0), 32)
tell("fsconfig", call, n["fsconfig"], 0, 6, 0, 0, 0)
tell("fsmount", call, n["fsmount"], 0, 0, 0)
handle = (ctypes.c_uint32 * 34)(128)
tell("a handle", call, n["name_to_handle_at"], -100, b"/usr", handle, (ctypes.c_int * 1)(), 0)
tell("by handle", call, n["open_by_handle_at"], os.open("/usr", os.O_PATH | os.O_DIRECTORY), handle, 0)
for argv in ("mount -t tmpfs x /tmp", "mount --bind /usr /tmp", "umount /tmp", "umount -l /proc", "chroot / true",
             "unshare -Ur true", "unshare -m true", "unshare -p true", "nsenter -t 1 -a true", "nsenter -t 1 -m true",
             "bwrap --ro-bind / / true"):
    ran = subprocess.run(["/bin/sh", "-c", argv], capture_output=True)
    tell(argv, lambda: "worked" if ran.returncode == 0 else "EPERM")
tell("nested", lambda: open("/proc/sys/user/max_user_namespaces").read().strip())
"""
ABSENT = ("clone3", "clone3 plain", "fsopen", "fspick", "open_tree", "move_mount", "mount_setattr", "fsconfig",
          "fsmount")  # fmt: skip


def test_there_is_no_way(alice: Person) -> None:
    found = findings(alice, CODE, numbers(*NAMES))
    assert found.pop("nested") == "0"
    assert {name: found.pop(name) for name in ABSENT} == dict.fromkeys(ABSENT, "ENOSYS")
    assert len(found) == 8 + 8 * 6 + 1 + 2 + 11
    assert {name: answer for name, answer in found.items() if answer != "EPERM"} == {}
