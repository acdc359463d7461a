"""A15: archives that lead out of their folder, or swell: only jobs unpack them, behind their walls, at their cost."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.attacks.tools import Belongings, Wire, memory_of, nobody_takes
from tests.client import Api, Person
from tests.stack import Stack
from tests.waiting import eventually


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, kind, target in (
            ("../../escaped", tarfile.REGTYPE, ""), ("/absolute", tarfile.REGTYPE, ""),
            ("link", tarfile.SYMTYPE, "/etc"), ("link/passwd", tarfile.REGTYPE, ""),
            ("hard", tarfile.LNKTYPE, "/etc/passwd"), ("device", tarfile.CHRTYPE, ""),
        ):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    return buffer.getvalue()


def crowded_tar() -> bytes:
    """A million empty files."""
    buffer, start = io.BytesIO(), tarfile.TarInfo("x").tobuf()[100:]
    rest = sum(start[:48]) + sum(start[56:]) + 8 * ord(" ")
    with gzip.open(buffer, "wb", 1) as archive:
        for number in range(1_000_000):
            name = b"%099d\0" % number
            archive.write(name + start[:48] + b"%06o\0 " % (sum(name) + rest) + start[56:])
    return buffer.getvalue()


def crowded_zip(entries: int = 1_000_000) -> bytes:
    """A directory of a million files, which are all the same."""
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 33, 0, 0, 0, 8, 0) + b"00000000"
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0)
    directory = b"".join(entry + b"%08d" % number for number in range(entries))
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, entries % 65535, entries % 65535, len(directory), len(local), 0)
    return local + directory + end


def swelling_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for _ in range(10):
            archive.writestr("../../escaped", b"\0" * 10_000_000)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["application/x-tar", "application/gzip", "application/zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_nothing_takes_an_archive(
    wire: Wire,
    admin: Api,
    belongings: Belongings,
    stack: Stack,
    unchanged: Callable[[], AbstractContextManager[None]],
    kind: str,
) -> None:
    body, before = swelling_zip() if kind.endswith("/zip") else tar(), memory_of(stack, "app")
    with unchanged():
        nobody_takes(wire, admin, belongings, [f"Content-Type: {kind}"], body)
    assert memory_of(stack, "app") - before < 16 * 2**20
    assert not [path for path in stack.folder.rglob("*") if path.name in ("escaped", "absolute", "passwd")]


@pytest.mark.parametrize("make", [tar, crowded_tar, crowded_zip, swelling_zip])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_job_that_is_given_one_ends_at_its_own_cost(alice: Person, stack: Stack, make: Callable[[], bytes]) -> None:
    """With a reason, and within its limits; nothing of it is anywhere else."""
    before = memory_of(stack, "app")
    fields = {"entrypoint": "x.sh", "limits": '{"memory": "256MiB", "disk": "64MiB"}', "timeout": "60"}
    sent = {"archive": ("a", make())}
    job = alice.api("POST", "/api/jobs", files=sent, data=fields).data
    ended = eventually(lambda: (seen := alice.api.job(job["id"]))["finished_at"] and seen, 70)
    assert ended["status"] in ("FAILED", "OUT_OF_MEMORY"), ended
    words = ("neither file nor folder", "names must", "more than 10,000", "No space left", "of memory used")
    assert any(word in ended["reason"] for word in words), ended["reason"]
    assert memory_of(stack, "app") - before < 32 * 2**20
    assert not [path for path in stack.folder.rglob("*") if path.name in ("escaped", "absolute", "passwd")]
    assert alice.api.submit("echo fine", wait=30)["stdout"] == "fine\n"
