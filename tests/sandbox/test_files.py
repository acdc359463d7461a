"""Files that a job is given: unpacked into its home behind its walls, or refused with the reason."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shell_service.sandbox import Files
from shell_service.sandbox.protocol import MAX_NAMED
from shell_service.sandbox.unpack import MAX_ENTRIES
from tests.sandbox.support import LIMITS, PYTHON, Ran, command, finish, run, sandbox

PROJECT = {
    "main.py": b"import sys, os\nfrom lib import deep\n"
    b"print(deep.WORD, sys.argv, os.getcwd(), oct(os.stat('tool').st_mode))",
    "lib/__init__.py": b"",
    "lib/deep.py": b"WORD = 'fine'",
    "tool": b"#!/bin/sh\necho tool $0 $*",
}


def tar(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mode = 0o755 if content.startswith(b"#!") else 0o644
            archive.addfile(info, io.BytesIO(content))
    return made.getvalue()


def tar_gz(files: Mapping[str, bytes]) -> bytes:
    return tar(files, "w:gz")


def zipped(files: Mapping[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFREG | (0o755 if content.startswith(b"#!") else 0o644)) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return made.getvalue()


MAKERS: dict[str, Callable[[Mapping[str, bytes]], bytes]] = {"tar": tar, "tar.gz": tar_gz, "zip": zipped}
EACH = pytest.mark.parametrize("kind", MAKERS)


def given(
    tmp_path: Path,
    kind: str,
    archive: bytes,
    entrypoint: str,
    interpreter: str = "",
    own_line: bool = True,
    asks: bool = False,
    **others: Any,
) -> Ran:
    """What comes of a job that is given this archive."""
    path = tmp_path / "upload"
    path.write_bytes(archive)
    files = Files(str(path), kind, entrypoint, own_line, asks=asks)

    async def main() -> Ran:
        async with sandbox() as made:
            launcher = await made.prepare(1, files=True)
            process = await launcher.start(command(interpreter, b"", files=files, **others))
            process.go()
            return await finish(process)

    return run(main())


def refused(ran: Ran) -> str:
    assert (ran.exit.return_code, ran.stdout) == (1, b"")
    assert ran.exit.refused
    return ran.exit.refused


@EACH
def test_a_project_is_run_from_its_home(tmp_path: Path, kind: str) -> None:
    ran = given(tmp_path, kind, MAKERS[kind](PROJECT), "main.py", PYTHON, args=("a", "b c"))
    assert ran.stdout == b"fine ['/job/main.py', 'a', 'b c'] /job 0o100755\n", ran
    assert (ran.exit.return_code, ran.exit.refused) == (0, None)


@EACH
def test_a_first_line_decides_unless_the_interpreter_was_named(tmp_path: Path, kind: str) -> None:
    archive = MAKERS[kind](PROJECT)
    assert given(tmp_path, kind, archive, "tool", args=("x",)).stdout == b"tool /job/tool x\n"
    assert given(tmp_path, kind, archive, "tool", PYTHON).stdout == b"tool /job/tool\n"
    ran = given(tmp_path, kind, archive, "tool", PYTHON, own_line=False)
    assert b"SyntaxError" in ran.stderr
    assert given(tmp_path, kind, MAKERS[kind]({"run": b"echo no line"}), "run", "/bin/sh").stdout == b"no line\n"


def test_what_cannot_be_run_is_told(tmp_path: Path) -> None:
    archive = tar({"thing": b"echo", "folder/x": b""})
    assert "The entrypoint thing cannot be run" in refused(given(tmp_path, "tar", archive, "thing"))
    for name in ("nothing", "folder", "folder/y"):
        assert f"There is no file {name} to begin with" in refused(given(tmp_path, "tar", archive, name, "/bin/sh"))
    ran = given(tmp_path, "tar", tar({"x": b"#!/no/such/interpreter\n"}), "x")
    assert (ran.exit.return_code, ran.exit.refused) == (126, None)


def test_no_more_than_the_files_is_there(tmp_path: Path) -> None:
    script = b"ls -A /job /run/job; ls /proc/self/fd | wc -l; id -u; ls -ln x | cut -c 1-10"
    ran = given(tmp_path, "tar", tar({"x": script}), "x", "/bin/sh")
    assert ran.stdout.decode().split() == ["/job:", "x", "/run/job:", "script", "4", "1000", "-rwxr-xr-x"]


@EACH
@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../up",
        "a/../../up",
        "a//b",
        "a/./b",
        "new\nline",
        "esc\033[2J",
        "x" * 256,
        "d/" * 16 + "x",
        "back\\x",
    ],
)
def test_names_that_lead_elsewhere(tmp_path: Path, kind: str, name: str) -> None:
    ran = given(tmp_path, kind, MAKERS[kind]({"x": b"echo began", name: b""}), "x", "/bin/sh")
    told = refused(ran)
    assert "names must" in told and told.isprintable()


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w") as archive:
            info = tarfile.TarInfo("odd")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        assert "neither file nor folder" in refused(given(tmp_path, "tar", made.getvalue(), "odd", "/bin/sh"))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as zip_:
        link = zipfile.ZipInfo("odd")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        zip_.writestr(link, "/etc/passwd")
    assert "neither file nor folder" in refused(given(tmp_path, "zip", made.getvalue(), "odd", "/bin/sh"))


@EACH
def test_what_is_no_whole_archive(tmp_path: Path, kind: str) -> None:
    whole = MAKERS[kind]({"x": b"echo " + os.urandom(3000)})
    for broken in (b"", b"nonsense" * 1000, whole[:2000], whole[:600]):
        told = refused(given(tmp_path, kind, broken, "x", "/bin/sh"))
        assert "could not be unpacked" in told or "no file x" in told


def test_a_file_that_is_shorter_than_it_says(tmp_path: Path) -> None:
    made = bytearray(zipped({"x": b"echo", "y": b"y" * 1000}))
    at = made.rindex(b"PK\1\2") + 24
    made[at : at + 4] = (1001).to_bytes(4, "little")
    assert "could not be unpacked" in refused(given(tmp_path, "zip", bytes(made), "x", "/bin/sh"))


def test_an_encrypted_one(tmp_path: Path) -> None:
    made = bytearray(zipped({"x": b"echo"}))
    at = made.index(b"PK\1\2") + 8
    for flags in (6, at):
        made[flags] |= 1
    assert "encrypted" in refused(given(tmp_path, "zip", bytes(made), "x", "/bin/sh"))


@EACH
@pytest.mark.parametrize("content", [b"", b"greet\n" * 9, b"# more\n" * 9999], ids=["empty", "lines", "large"])
def test_what_packages_it_names_is_told_instead_of_running_it(tmp_path: Path, kind: str, content: bytes) -> None:
    archive = MAKERS[kind]({"x": b"echo; mkdir artifacts; touch artifacts/y", "requirements.txt": content})
    ran = given(tmp_path, kind, archive, "x", "/bin/sh", asks=True)
    assert (ran.stdout, ran.exit.artifacts, ran.exit.refused) == (b"", 0, None)
    assert ran.exit.named == content[: MAX_NAMED + 1]
    ran = given(tmp_path, kind, archive, "x", "/bin/sh")
    assert (ran.stdout, ran.exit.artifacts, ran.exit.named) == (b"\n", 1, None)


@pytest.mark.parametrize("other", ["a/requirements.txt", "requirements.txt/a", "requirements"])
def test_one_that_names_none_is_run(tmp_path: Path, other: str) -> None:
    ran = given(tmp_path, "zip", zipped({"x": b"echo here", other: b"greet"}), "x", "/bin/sh", asks=True)
    assert (ran.stdout, ran.exit.return_code, ran.exit.named) == (b"here\n", 0, None)


@EACH
def test_a_name_that_comes_twice(tmp_path: Path, kind: str) -> None:
    made = io.BytesIO()
    if kind == "zip":
        with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(made, "w") as archive:
            for _ in range(2):
                archive.writestr("x", b"echo")
    else:
        with tarfile.open(fileobj=made, mode="w:gz" if kind == "tar.gz" else "w") as tarred:
            for _ in range(2):
                tarred.addfile(tarfile.TarInfo("x"))
    assert "twice" in refused(given(tmp_path, kind, made.getvalue(), "x", "/bin/sh"))


@EACH
def test_a_bomb_ends_with_the_job_s_own_disk(tmp_path: Path, kind: str) -> None:
    archive = MAKERS[kind]({f"zeros{n}": bytes(20 << 20) for n in range(3)})
    told = refused(given(tmp_path, kind, archive, "zeros0", "/bin/sh"))
    assert "No space left" in told
    large = MAKERS[kind]({"zeros": bytes(25 << 20)})
    assert "File too large" in refused(given(tmp_path, kind, large, "zeros", "/bin/sh"))


@EACH
def test_no_more_entries_than_may_be(tmp_path: Path, kind: str) -> None:
    many = {f"f{n}": b"" for n in range(MAX_ENTRIES + 1)}
    assert "more than 10,000" in refused(given(tmp_path, kind, MAKERS[kind](many), "f1", "/bin/sh"))


def test_with_few_open_files_and_processes(tmp_path: Path) -> None:
    limits = replace(LIMITS, open_files=16, processes=2)
    for kind, make in MAKERS.items():
        ran = given(tmp_path, kind, make(PROJECT), "main.py", PYTHON, limits=limits)
        assert ran.stdout.startswith(b"fine"), ran


def test_a_job_without_files_beside_one_with_them(tmp_path: Path) -> None:
    """They do not share a launcher, but all else."""
    path = tmp_path / "upload"
    path.write_bytes(tar(PROJECT))
    files = Files(str(path), "tar", "tool", True)

    async def main() -> tuple[bytes, bytes]:
        async with sandbox() as made:
            plain = await (await made.prepare(1)).start(command("/bin/sh", b"id -u; ls -A"))
            with_files = await (await made.prepare(1, files=True)).start(command("", b"", files=files))
            for process in (plain, with_files):
                process.go()
            return (await finish(plain)).stdout, (await finish(with_files)).stdout

    assert run(main()) == (b"1000\n", b"tool /job/tool\n")
