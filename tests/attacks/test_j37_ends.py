"""J37: ends that look like other ends."""

from __future__ import annotations

from tests.attacks.jobs import ended, submit
from tests.client import Person

# script, and its status, code and signal
ENDS = [
    ("exit 0", "COMPLETED", 0, None),
    ("exit 125", "FAILED", 125, None),
    ("exit 126", "FAILED", 126, None),
    ("exit 137", "FAILED", 137, None),
    ("exit 143", "FAILED", 143, None),
    ("exit 159", "FAILED", 159, None),
    ("exit 255", "FAILED", 255, None),
    ("kill -9 $$", "FAILED", None, "SIGKILL"),
    ("kill -15 $$", "FAILED", None, "SIGTERM"),
    ("kill -SEGV $$", "FAILED", None, "SIGSEGV"),
    ("kill -SYS $$", "FAILED", None, "SIGSYS"),
    ("kill -XCPU $$", "FAILED", None, "SIGXCPU"),
    ("kill -XFSZ $$", "FAILED", None, "SIGXFSZ"),
    ("kill -USR1 $$", "FAILED", None, "SIGUSR1"),
    ("kill -40 $$", "FAILED", None, "SIGRTMIN+6"),  # one that has no name of its own
    ("kill -9 -1; exit 0", "COMPLETED", 0, None),
    ("kill -9 1; kill -15 1; kill -INT 1; kill -HUP 1; kill -STOP 1; exit 6", "FAILED", 6, None),
    ("sleep 100 & kill -9 $!; wait $!; exit 0", "COMPLETED", 0, None),
    ("sh -c 'kill -9 $$'; exit $?", "FAILED", 137, None),
    ("echo Killed >&2; echo 'out of memory' >&2; exit 137", "FAILED", 137, None),
    ("echo 'Terminated: timeout' >&2; exit 124", "FAILED", 124, None),
    ("(sleep 100; exit 5) & exit 0", "COMPLETED", 0, None),
    ("exec 1>&- 2>&-; exit 3", "FAILED", 3, None),
    ("exec /nosuch", "FAILED", 127, None),
    ("exec /etc/passwd", "FAILED", 126, None),
    ("trap 'exit 9' TERM; kill $$; exit 1", "FAILED", 9, None),
]


def test_they_are_told_apart(alice: Person) -> None:
    jobs = [alice.api.submit(code) for code, *_ in ENDS]
    for job, (code, status, returned, name) in zip(jobs, ENDS, strict=True):
        record = ended(alice, job)
        assert [record["status"], record["return_code"], record["signal"]] == [status, returned, name], code
        assert (record["attempt"], record["cancelled_by"]) == (1, None)
        assert (record["finished_at"] is not None) and record["wall_seconds"] < 20
        assert (name or f"exit code {returned}") in record["reason"], record["reason"]


MAPS_FILES = """
import mmap, pathlib
kept, size = [], 0
for path in pathlib.Path("/usr/lib").rglob("*.so*"):
    if path.is_file() and path.stat().st_size and size < GIVEN:
        with path.open("rb") as file:
            kept.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        size += sum(4096 for n in range(0, len(kept[-1]), 4096) if kept[-1][n] >= 0)
raise SystemExit(3)
"""


def test_files_that_are_mapped_are_not_memory_that_ended_it(alice: Person) -> None:
    job = ended(alice, submit(alice, MAPS_FILES, 64 << 20, limits={"memory": 32 << 20}))
    assert job["peak_memory_bytes"] > 48 << 20
    assert (job["status"], job["reason"]) == ("FAILED", "exit code 3")
