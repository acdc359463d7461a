"""What the runner and a launcher say to each other; both ends run the same version on the same machine.

To the spawner, of which launchers are forked, the runner says FORK with the control socket of another one.

On the launcher's control socket (SEQPACKET, so a message is a datagram that arrives in order):

- first STARTED by the launcher, with a pidfd of itself;
- then SETUP to it, with the two system call filters as descriptors, and the filter of frames as a third if its network
  is to have a way out; answered by READY or FAILED; in between, where the runner has to map the launcher's user, by
  ENTERED, to which the runner says MAPPED;
- then START with the descriptors of one job, and TERMINATE; answered, when all of a job is gone, by ENDED;
- RESTRICT with another filter of frames, unanswered.

On a job's own socket: its init sends HELD, with a pidfd of itself, its file systems and all its mounts, or FAILED; the
runner sends GO; the init REFUSED, with a sentence, if the job's files cannot be unpacked, or NAMED, with what their
`REQUIREMENTS` holds, if that was asked for and there is one: then the script does not begin; REPORT when the script and
all that it started has ended, and PACKED when its artifacts are written.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

READY, FAILED, ENTERED, MAPPED, START, TERMINATE, ENDED, RESTRICT = (bytes([kind]) for kind in range(1, 9))
HELD, GO, REPORT, FORK, STARTED, PACKED, REFUSED, NAMED = (bytes([kind]) for kind in range(9, 17))
MAX_MESSAGE = 4096
#: What names the packages that a job needs, in the uppermost folder of its files.
REQUIREMENTS = "requirements.txt"
#: Bytes of it that are told; where it is larger, one more.
MAX_NAMED = 64 * 1024
#: What a job can write to: each is a file system of its own, in memory. Their descriptors come with HELD.
FOLDERS = ("/job", "/tmp", "/dev/shm")
#: How the files that a job is given come: as these kinds of archives, by their number from 1 on; 0: there are none.
KINDS = ("tar", "tar.gz", "zip")
#: Of a kernel that shares processors between sessions; sched(7).
AUTOGROUP = "/proc/self/autogroup"
#: SIGUSR1 to an init: kill all but yourself, and report.
KILL_ALL = 10

INT = struct.Struct("i")  # a descriptor
PID = struct.Struct("<i")
JOB = struct.Struct("<Q")  # the runner's number of a job
HELD_BODY = struct.Struct("<iQ")  # pid, start time
# Wait status, when that was on the monotonic clock, CPU seconds, largest resident set in bytes, bytes written.
REPORT_BODY = struct.Struct("<iddqq")
PACKED_BODY = struct.Struct("<II")  # artifacts that were kept, and that were left out
ENDED_BODY = struct.Struct("<Qdq")  # the job's number; CPU seconds and largest resident set, the init's included
_SETUP = struct.Struct("<BB4Q")  # and the folder of layers
_ORDER = struct.Struct("<8I2QIBBB")
_LIMIT = struct.Struct("<IQQ")


class Setup:
    """What a launcher is told once: its way, the user and group that jobs run as, and sizes of file systems.

    `unpacks` tells whether there may be jobs that are given files, `layers` is the folder of those that these may see;
    empty: there are none.
    """

    #: Ways: with walls; with walls around a user that the runner maps; without walls.
    WALLS, MAPPED, BARE = range(3)

    def __init__(
        self, way: int, unpacks: bool, uid: int, gid: int, tmp_size: int, shm_size: int, layers: bytes = b""
    ) -> None:
        self.way, self.unpacks, self.uid, self.gid = way, unpacks, uid, gid
        self.tmp_size, self.shm_size, self.layers = tmp_size, shm_size, layers

    def pack(self) -> bytes:
        sizes = self.tmp_size, self.shm_size
        return _SETUP.pack(self.way, self.unpacks, self.uid, self.gid, *sizes) + self.layers

    @classmethod
    def unpack(cls, data: bytes) -> Setup:
        way, unpacks, uid, gid, tmp_size, shm_size = _SETUP.unpack_from(data)
        return cls(way, unpacks, uid, gid, tmp_size, shm_size, data[_SETUP.size :])


class Order:
    """What the init of a job is told: the arguments and variables for exec, the script, secrets, and limits.

    None of the texts holds a NUL. `env` holds NAME=value, `disk` bytes, `limits` soft and hard ones by their numbers
    in the ``resource`` module; `processors` are those to run on, where it may not use all. Of its artifacts
    `most_files` are kept, with `most_bytes`. `files` is the kind of the files that it is given: then the second
    argument is a path below its home, and with `own_line` the first does not count where that file begins with ``#!``.
    With `asks` their packages are told where they name any, instead of running it. `layer` is the name of the one that
    it sees; empty: none.
    """

    def __init__(
        self,
        argv: list[bytes],
        env: list[bytes],
        script: bytes,
        secrets: Mapping[bytes, bytes],
        disk: int,
        processors: Collection[int],
        limits: Mapping[int, tuple[int, int]],
        most_bytes: int,
        most_files: int,
        files: int,
        own_line: bool,
        asks: bool,
        layer: bytes = b"",
    ) -> None:
        self.argv, self.env, self.script, self.secrets = argv, env, script, secrets
        self.disk, self.processors, self.limits = disk, processors, limits
        self.most_bytes, self.most_files = most_bytes, most_files
        self.files, self.own_line, self.asks, self.layer = files, own_line, asks, layer

    def pack(self) -> bytes:
        texts = b"\0".join((*self.argv, *self.env, *self.secrets))
        parts = self.argv, self.env, self.secrets, self.processors, self.limits, texts, self.script, self.layer
        return b"".join(
            (
                _ORDER.pack(
                    *map(len, parts),
                    *(self.disk, self.most_bytes, self.most_files),
                    *(self.files, bool(self.own_line), bool(self.asks)),
                ),
                struct.pack(f"<{len(self.processors)}I", *self.processors),
                struct.pack(f"<{len(self.secrets)}I", *map(len, self.secrets.values())),
                *(_LIMIT.pack(number, *pair) for number, pair in self.limits.items()),
                texts,
                self.script,
                self.layer,
                *self.secrets.values(),
            )
        )

    @classmethod
    def unpack(cls, data: bytes) -> Order:
        """The order again. Raises ValueError where a text holds a NUL."""
        *counts, length, script, layer, disk, most_bytes, most_files, files, own_line, asks = _ORDER.unpack_from(data)
        arguments, variables, secrets, processors, limits = counts
        at = _ORDER.size
        numbers = struct.unpack_from(f"<{processors}I", data, at)
        at += 4 * processors
        sizes = struct.unpack_from(f"<{secrets}I", data, at)
        at += 4 * secrets
        pairs = {
            number: (soft, hard) for number, soft, hard in _LIMIT.iter_unpack(data[at : at + limits * _LIMIT.size])
        }
        at += limits * _LIMIT.size
        texts = data[at : at + length].split(b"\0")
        at += length
        names = arguments + variables
        if len(texts) != names + secrets:
            raise ValueError("a NUL in an argument, a variable or a name")
        code, folder = data[at : at + script], data[at + script : at + script + layer]
        at += script + layer
        values = {}
        for name, size in zip(texts[names:], sizes, strict=True):
            values[name] = data[at : at + size]
            at += size
        others = most_bytes, most_files, files, own_line, asks, folder
        return cls(texts[:arguments], texts[arguments:names], code, values, disk, numbers, pairs, *others)
