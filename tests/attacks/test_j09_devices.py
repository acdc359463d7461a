"""J9: devices, made or found."""

from __future__ import annotations

from tests.attacks.jobs import findings
from tests.client import Person

CODE = """
import stat
C, B = stat.S_IFCHR, stat.S_IFBLK
for name, mode, device in (("mem", C, (1, 1)), ("null", C, (1, 3)), ("tty", C, (5, 0)), ("kvm", C, (10, 232)),
                           ("tun", C, (10, 200)), ("fuse", C, (10, 229)), ("vda", B, (254, 0)), ("sda", B, (8, 0)),
                           ("loop", B, (7, 0))):
    for folder in ("/tmp", "/job", "/dev/shm"):
        tell(f"make {folder}/{name}", os.mknod, f"{folder}/{name}", mode | 0o666, os.makedev(*device))
    tell(f"make /dev/{name}", os.mknod, f"/dev/{name}x", mode | 0o666, os.makedev(*device))
for name in ("mem", "kmem", "port", "vda", "vda1", "sda", "nvme0n1", "loop0", "loop-control", "kvm", "net/tun", "fuse",
             "kmsg", "ptmx", "pts", "pts/0", "console", "tty0", "tty1", "ttyS0", "mqueue", "hugepages", "userfaultfd",
             "vhost-net", "vhost-vsock", "vsock", "uinput", "rtc0", "watchdog", "autofs", "cuse", "mapper/control",
             "log", "initctl", "core", "cpu_dma_latency", "hpet", "nvram", "snapshot", "dri/card0", "video0", "snd"):
    tell(f"open {name}", os.open, f"/dev/{name}", os.O_RDONLY)
tell("there", lambda: sorted(os.listdir("/dev")))
tell("terminal", os.open, "/dev/tty", os.O_RDWR)
kinds = {}
for name in os.listdir("/dev"):
    found = os.lstat(f"/dev/{name}")
    if not stat.S_ISLNK(found.st_mode) and name != "shm":
        kinds[name] = [stat.S_ISCHR(found.st_mode), os.major(found.st_rdev), os.minor(found.st_rdev)]
tell("devices", lambda: kinds)
"""
DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}


def test_there_are_but_the_harmless(alice: Person) -> None:
    found = findings(alice, CODE)
    assert found.pop("there") == sorted([*DEVICES, "fd", "shm", "stderr", "stdin", "stdout"])
    assert found.pop("devices") == {name: [True, *numbers] for name, numbers in DEVICES.items()}
    assert found.pop("terminal") == "ENXIO"  # there is none
    opened = {what: found.pop(what) for what in list(found) if what.startswith("open ")}
    assert set(opened.values()) == {"ENOENT"}
    assert len(opened) > 40
    assert len(found) == 9 * 4
    assert {what: answer for what, answer in found.items() if answer not in ("EPERM", "EROFS")} == {}
