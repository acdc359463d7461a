"""J31: typing into a terminal of the host, and other requests to devices."""

from __future__ import annotations

from tests.attacks.jobs import findings, number
from tests.client import Person

TIOCSTI, TIOCLINUX, TIOCSCTTY, TIOCCONS = 0x5412, 0x541C, 0x540E, 0x541D
CODE = """
ioctl = GIVEN["ioctl"]
buffer = (ctypes.c_char * 4096)(ord("x"))
for fd in (0, 1, 2):
    for name, request in GIVEN["requests"].items():
        for high in (0, 1 << 32, 0xFFFFFFFF << 32):
            tell(f"{name} {fd} {high}", call, ioctl, fd, high | request, buffer)
for path in ("/dev/tty", "/dev/console", "/dev/tty0", "/dev/tty1", "/dev/pts/0", "/dev/ptmx", "/dev/pts/ptmx"):
    tell(path, os.open, path, os.O_RDWR)
tell("a terminal of its own", os.openpty)
tell("controlling", lambda: open("/proc/self/stat").read().rpartition(")")[2].split()[4])
tell("terminals", lambda: [os.isatty(fd) for fd in range(3)])
"""


def test_there_is_none(alice: Person) -> None:
    refused = {"TIOCSTI": TIOCSTI, "TIOCLINUX": TIOCLINUX}
    requests = {**refused, "TIOCSCTTY": TIOCSCTTY, "TIOCCONS": TIOCCONS}
    found = findings(alice, CODE, {"ioctl": number("ioctl"), "requests": requests})
    assert (found.pop("controlling"), found.pop("terminals")) == ("0", [False] * 3)
    assert found.pop("/dev/tty") == "ENXIO"
    asked = {what: found.pop(what) for what in list(found) if what.startswith("TIOC")}
    assert len(asked) == 4 * 9
    assert {answer for what, answer in asked.items() if what.split()[0] in refused} == {"EPERM"}  # not ENOTTY
    assert {answer for what, answer in asked.items() if what.split()[0] not in refused} <= {"ENOTTY", "EPERM"}
    assert set(found.values()) == {"ENOENT"}
