"""Output on its way from a pipe to a file: whole, or said to be truncated."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from shell_service.capture import Capture


def capture(path: Path, data: bytes, *, most: int = 1 << 20, open_end: bool = False, turns: int = 50) -> Capture:
    """A capture of `data`, after the loop had that many turns; the writer is still there if `open_end`."""

    async def take() -> Capture:
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.write(write, data)
        if not open_end:
            os.close(write)
        capture = Capture(read, lambda: os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), most)
        for _ in range(turns):
            await asyncio.sleep(0)
        await capture.finish(0)
        if open_end:
            os.close(write)
        return capture

    return asyncio.run(take())


@pytest.mark.parametrize("turns", [0, 50])
def test_the_end_is_waited_for_but_what_is_there_is_taken(tmp_path: Path, turns: int) -> None:
    data = bytes(60_000)
    taken = capture(tmp_path / "file", data, turns=turns)
    assert ((tmp_path / "file").read_bytes(), taken.size, taken.truncated) == (data, 60_000, False)


def test_output_whose_end_never_came_is_said_to_be_truncated(tmp_path: Path) -> None:
    taken = capture(tmp_path / "file", b"hello", open_end=True, turns=0)
    assert ((tmp_path / "file").read_bytes(), taken.truncated) == (b"hello", True)


def test_no_output_makes_no_file(tmp_path: Path) -> None:
    taken = capture(tmp_path / "file", b"")
    assert (taken.size, taken.truncated, (tmp_path / "file").exists()) == (0, False, False)


def test_a_cap_is_exact(tmp_path: Path) -> None:
    taken = capture(tmp_path / "file", b"123456", most=5)
    assert ((tmp_path / "file").read_bytes(), taken.size, taken.truncated) == (b"12345", 5, True)


@pytest.mark.parametrize("file", ["/dev/full", "/nowhere/file"])
def test_a_full_disk_is_said_so_and_does_no_harm(file: str) -> None:
    taken = capture(Path(file), b"hello")
    assert (taken.size, taken.truncated) == (0, True)
