"""What the runner and a launcher say to each other; both ends run the same version on the same machine.

On the launcher's control socket (SEQPACKET, so a message is a datagram that arrives in order):

- first SETUP to the launcher, with the system call filter as descriptor, answered by READY or FAILED;
- then START with the descriptors of one job, and TERMINATE; answered, when all of a job is gone, by ENDED.

On a job's own socket: the sandbox sends HELD, with a pidfd, or FAILED; the runner sends GO; the sandbox sends REPORT.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

READY, FAILED, START, TERMINATE, ENDED, HELD, GO, REPORT = (bytes([kind]) for kind in range(1, 9))
MAX_MESSAGE = 65536

JOB = struct.Struct("<Q")  # the runner's number of a job
HELD_BODY = struct.Struct("<iQ")  # pid, start time
REPORT_BODY = struct.Struct("<idq")  # wait status, CPU seconds, largest resident set in bytes
ENDED_BODY = struct.Struct("<Qidq")  # the job's number, then as above
_SETUP = struct.Struct("<6Q")
_COUNTS = struct.Struct("<III")


class Setup(NamedTuple):
    """What a launcher is told once. Sizes in bytes."""

    #: The user and group that jobs run as.
    uid: int
    job_size: int
    tmp_size: int
    shm_size: int
    max_file: int
    max_open_files: int

    def pack(self) -> bytes:
        return _SETUP.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Setup:
        return cls(*_SETUP.unpack(data))


class Order(NamedTuple):
    """What a job is made of, as bytes for exec; travels in a memfd."""

    argv: Sequence[bytes]
    env: Sequence[bytes]
    script: bytes

    def pack(self) -> bytes:
        texts = b"\0".join((*self.argv, *self.env))
        return _COUNTS.pack(len(self.argv), len(self.env), len(texts)) + texts + self.script

    @classmethod
    def unpack(cls, data: bytes) -> Order:
        arguments, variables, length = _COUNTS.unpack_from(data)
        end = _COUNTS.size + length
        texts = data[_COUNTS.size : end].split(b"\0")
        assert len(texts) == arguments + variables
        return cls(texts[:arguments], texts[arguments:], data[end:])
