"""What the runner and a launcher say to each other; both ends run the same version on the same machine.

On the launcher's control socket (SEQPACKET, so a message is a datagram that arrives in order):

- first SETUP to the launcher, with the system call filter as descriptor, answered by READY or FAILED;
- then START with the descriptors of one job, and TERMINATE; answered, when all of a job is gone, by ENDED.

On a job's own socket: its init sends HELD, with a pidfd of itself, or FAILED; the runner sends GO; the init REPORT.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

READY, FAILED, START, TERMINATE, ENDED, HELD, GO, REPORT = (bytes([kind]) for kind in range(1, 9))
MAX_MESSAGE = 4096
#: SIGUSR1 to an init: kill all but yourself, and report.
KILL_ALL = 10

INT = struct.Struct("i")  # a descriptor
JOB = struct.Struct("<Q")  # the runner's number of a job
HELD_BODY = struct.Struct("<iQ")  # pid, start time
REPORT_BODY = struct.Struct("<idq")  # wait status, CPU seconds, largest resident set in bytes
ENDED_BODY = struct.Struct("<Qdq")  # the job's number, and as above of all its processes, the init too
_SETUP = struct.Struct("<6Q")
_COUNTS = struct.Struct("<III")


class Setup:
    """What a launcher is told once: the user and group that jobs run as, and sizes in bytes."""

    def __init__(
        self, uid: int, job_size: int, tmp_size: int, shm_size: int, max_file: int, max_open_files: int
    ) -> None:
        self.uid = uid
        self.job_size, self.tmp_size, self.shm_size = job_size, tmp_size, shm_size
        self.max_file, self.max_open_files = max_file, max_open_files

    def pack(self) -> bytes:
        return _SETUP.pack(self.uid, self.job_size, self.tmp_size, self.shm_size, self.max_file, self.max_open_files)

    @classmethod
    def unpack(cls, data: bytes) -> Setup:
        return cls(*_SETUP.unpack(data))


def pack_order(argv: Sequence[bytes], env: Sequence[bytes], script: bytes) -> bytes:
    """What a job is made of: arguments for exec, variables as NAME=value, the script. None of the texts holds a NUL."""
    texts = b"\0".join((*argv, *env))
    return _COUNTS.pack(len(argv), len(env), len(texts)) + texts + script


def unpack_order(data: bytes) -> tuple[list[bytes], list[bytes], bytes]:
    """The arguments, the variables and the script again."""
    arguments, variables, length = _COUNTS.unpack_from(data)
    end = _COUNTS.size + length
    texts = data[_COUNTS.size : end].split(b"\0")
    if len(texts) != arguments + variables:
        raise ValueError("a NUL in an argument or a variable")
    return texts[:arguments], texts[arguments:], data[end:]
