"""A15: archives that lead out of their folder, or swell: nothing takes one, so nothing ever unpacks one."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.attacks.tools import Belongings, Wire, memory_of, nobody_takes
from tests.client import Api
from tests.stack import Stack


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
