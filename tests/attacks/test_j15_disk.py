"""J15: files without end: large, sparse, many, deep, or gone and still held open."""

from __future__ import annotations

import time

from tests.attacks.jobs import ended, findings, numbers, output, submit, told, within
from tests.client import Person
from tests.stack import Stack

MiB = 1 << 20
DISK, FILE = 16 * MiB, 8 * MiB
CODE = """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
MiB = 1 << 20
def fill(folder, held=False, most=1000):
    "Bytes that files of 4 MiB take until there is no room."
    total, kept = 0, []
    try:
        for n in range(most):
            fd = os.open(f"{folder}/{n}", os.O_RDWR | os.O_CREAT)
            kept.append(fd)
            if held:
                os.unlink(f"{folder}/{n}")
            for _ in range(4):
                total += os.write(fd, b"x" * MiB)
    except OSError as error:
        answer = name_of(error)
    for fd in kept:
        os.close(fd)
    for name in os.listdir(folder):
        os.unlink(f"{folder}/{name}")
    return [answer, total]
for folder in ("/job", "/tmp", "/dev/shm"):
    tell(f"fill {folder}", fill, folder)
    tell(f"hold {folder}", fill, folder, True)
def big(act):
    fd = os.open("/job/big", os.O_RDWR | os.O_CREAT)
    try:
        return act(fd)
    finally:
        os.close(fd)
        os.unlink("/job/big")
tell("sparse", big, lambda fd: os.truncate(fd, 1 << 40))
tell("far away", big, lambda fd: os.pwrite(fd, b"x", 1 << 40))
tell("set aside", big, lambda fd: os.posix_fallocate(fd, 0, 1 << 40))
tell("without its size", big, lambda fd: call(GIVEN["fallocate"], fd, 1, 0, 32 * MiB))
tell("long", big, lambda fd: [os.write(fd, b"x" * MiB) for _ in range(100)])
def many(folder):
    count = 0
    while True:
        try:
            os.close(os.open(f"{folder}/{count}", os.O_CREAT | os.O_WRONLY))
        except OSError as error:
            return [name_of(error), count]
        count += 1
tell("many", many, "/job")
tell("links", lambda: os.link("/tmp/x", "/tmp/y"))
"""


def test_they_are_bounded(alice: Person) -> None:
    found = findings(alice, CODE, numbers("fallocate"), limits={"disk": DISK, "file_size": FILE, "memory": 512 * MiB})
    full = {name: found.pop(name) for name in list(found) if name.startswith(("fill", "hold"))}
    assert {answer for answer, _ in full.values()} == {"ENOSPC"}
    for name, (_, total) in full.items():
        most = {"/job": DISK, "/tmp": 64 * MiB, "/dev/shm": 16 * MiB}[name.split()[1]]
        assert most - 4 * MiB <= total <= most, name
    answer, count = found.pop("many")
    assert answer == "ENOSPC"
    assert 1000 < count <= 65_536
    assert found.pop("links") == "ENOENT"
    assert found.pop("without its size") in ("ENOSPC", "EFBIG")
    assert found == dict.fromkeys(("sparse", "far away", "set aside", "long"), "EFBIG")


DEEP = """
try:
    while True:
        os.mkdir("x" * 100)
        os.chdir("x" * 100)
        if not GIVEN:
            open("f", "w").close()
except OSError as error:
    print(json.dumps(["deep", name_of(error)]))
os.chmod("/job", 0)
os.chmod("/tmp", 0)
"""


def test_the_room_is_back_at_once(stack: Stack, alice: Person) -> None:
    """However deep, however closed to its owner; and whoever wants to can say so."""
    jobs = [submit(alice, DEEP, given, limits={"disk": 64 * MiB}) for given in (0, 1)]
    jobs.append(alice.api.submit("head -c 60M /dev/zero > /job/x; sleep 1000", limits={"disk": 64 * MiB}, timeout=1))
    records = [ended(alice, job) for job in jobs]
    assert [record["status"] for record in records] == ["COMPLETED", "COMPLETED", "TIMEOUT"]
    assert [told(alice, job)["deep"] for job in jobs[:2]] == ["ENOSPC"] * 2
    assert within(stack) == []
    full = ended(alice, alice.api.submit("head -c 30M /dev/zero > /job/x", limits={"disk": DISK}))
    assert (full["status"], full["reason"]) == ("FAILED", "exit code 1; its disk was full: 16 MiB")
    assert b"No space left" in output(alice, full, "stderr")
    begun = time.monotonic()
    assert alice.api.submit("ls -A; echo fine", wait=5)["stdout"] == "fine\n"
    assert time.monotonic() - begun < 2
