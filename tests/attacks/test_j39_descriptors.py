"""J39: descriptors that somebody might have left open, and the ends of the streams."""

from __future__ import annotations

from tests.attacks.jobs import findings, lines
from tests.client import Person

CODE = """
import fcntl, stat
for fd in (3, *range(4, 256)):
    for act in (lambda: os.write(fd, b"go\\n"), lambda: os.read(fd, 1), lambda: os.fstat(fd)):
        try:
            act()
            tell(f"open {fd}", lambda: os.readlink(f"/proc/self/fd/{fd}"))
        except OSError as error:
            if error.errno != errno.EBADF:
                tell(f"open {fd}", name_of, error)
tell("input", lambda: os.read(0, 100).decode())
tell("again", lambda: os.read(0, 100).decode())
tell("fill", lambda: os.write(0, b"x"))
tell("fill by name", open, "/proc/self/fd/0", "w")
tell("read the output", lambda: os.read(1, 1).decode())
tell("kinds", lambda: [stat.S_IFMT(os.fstat(fd).st_mode) for fd in (1, 2)])
tell("seek", os.lseek, 1, 0, 0)
tell("where", lambda: [os.readlink(f"/proc/self/fd/{fd}").split(":")[0] for fd in (1, 2)])
"""


def test_there_are_but_three(alice: Person) -> None:
    for sent in ("", "once"):
        found = findings(alice, CODE, stdin=sent)
        assert (found.pop("input"), found.pop("again")) == (sent, "")
        assert found.pop("fill") in ("EBADF", "EPERM")
        assert found == {
            "fill by name": "EPERM" if sent else "worked",  # /dev/null, or sealed
            "read the output": "EBADF", "kinds": [0o010000] * 2, "seek": "ESPIPE", "where": ["pipe", "pipe"],
        }  # fmt: skip
    assert lines(alice, "cat; cat <&0; cat /dev/stdin; read line || echo end") == ["end"]
    assert lines(alice, "for n in 3 4 5 9 10 99; do (echo go >&$n) 2>/dev/null && echo $n; done; true") == []
