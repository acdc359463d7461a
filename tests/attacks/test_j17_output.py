"""J17: output without end, without lines, or without sense."""

from __future__ import annotations

import itertools

from tests.attacks.jobs import ended, output
from tests.attacks.tools import memory_of
from tests.client import Person, events, texts
from tests.stack import Stack

MiB = 1 << 20
MOST = 256 * 1024
# What is printed over and over.
FLOODS = {
    "lines": b"y\n",
    "zeroes": b"\0",
    "one line": b"x",
    "no UTF-8": b"\xff\xfe\x80\xc3(",
    "cut characters": "\U0001f4a9".encode() + b"x",
    "returns": b"\r",
    "escapes": b"\x1b[2J\x1b]8;;http://x\x07",
    "events": b"data: x\n\n",
}
CODE = """
import os, sys
unit = bytes.fromhex(sys.argv[1])
block = unit * (65536 // len(unit))
for n in range(400):
    os.write(1 + n % int(sys.argv[2]), block)
"""


def test_it_is_cut_off(stack: Stack, alice: Person, bob: Person) -> None:
    size = memory_of(stack, "runner", "app")
    fields = {"shell": "python", "limits": {"output": MOST}}
    jobs = {
        (name, streams): alice.api.submit(CODE, args=[unit.hex(), str(streams)], **fields)
        for name, unit in FLOODS.items()
        for streams in (1, 2)
    }
    endless = alice.api.submit("yes & yes >&2 & while :; do echo; done", limits={"output": MOST}, timeout=1.5)
    following = events(alice.api, endless["id"])
    first = list(itertools.islice(following, 3))
    assert first
    assert bob.api.submit("echo fine", wait=5)["stdout"] == "fine\n"
    for (name, streams), job in jobs.items():
        record, unit = ended(alice, job), FLOODS[name]
        assert (record["status"], record["output_truncated"]) == ("COMPLETED", True), name
        for stream in ("stdout", "stderr")[:streams]:
            kept = output(alice, job, stream)
            assert kept == (unit * MOST)[: len(kept)], name
            assert len(kept) == record[f"{stream}_bytes"] == MOST, name
            assert len(record[stream]) <= MOST
    record = ended(alice, endless)
    assert (record["status"], record["output_truncated"]) == ("TIMEOUT", True)
    assert record["stdout_bytes"] == record["stderr_bytes"] == MOST
    rest = [*first, *following]
    assert len(texts(rest, "stdout")) == MOST
    assert rest[-1].kind == "end"
    assert memory_of(stack, "runner", "app") - size < 24 * MiB


def test_what_was_never_read_by_anybody_is_all_there(alice: Person) -> None:
    """Many short lines, both streams in turn, up to the limit exactly."""
    code = "import os\nfor n in range(100_000): os.write(1 + n % 2, b'%06d\\n' % n)"
    job = ended(alice, alice.api.submit(code, shell="python", limits={"output": 350_000}))
    assert (job["status"], job["output_truncated"]) == ("COMPLETED", False)
    for first, stream in enumerate(("stdout", "stderr")):
        assert output(alice, job, stream) == b"".join(b"%06d\n" % n for n in range(first, 100_000, 2))
