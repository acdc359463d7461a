"""Output on its way from a pipe to a file: whole, or said to be truncated."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from baselayer.share import LoopShare
from shell_service.capture import Capture, MaskedCapture
from shell_service.mask import Mask
from tests.waiting import SLOWNESS


def reader(pipe: int, path: Path, most: int, mask: Mask | None, share: LoopShare | None = None) -> Capture:
    """A capture from the pipe to the file; masked if there is something to mask."""

    def create() -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)

    if mask is None:
        return Capture(pipe, create, most)
    return MaskedCapture(pipe, create, most, mask.stream(), partial((share or LoopShare(0.2)).ask, 1))


def capture(
    path: Path,
    data: bytes,
    *,
    most: int = 1 << 20,
    open_end: bool = False,
    turns: int = 50,
    mask: Mask | None = None,
) -> Capture:
    """A capture of `data`, after the loop had that many turns; the writer is still there if `open_end`."""

    async def take() -> Capture:
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.write(write, data)
        if not open_end:
            os.close(write)
        capture = reader(read, path, most, mask)
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


def test_secrets_are_masked_to_the_last_byte(tmp_path: Path) -> None:
    taken = capture(tmp_path / "file", b"it is hunter2, or hunt", mask=Mask([b"hunter2"]))
    assert ((tmp_path / "file").read_bytes(), taken.size, taken.truncated) == (b"it is ***, or hunt", 18, False)


def test_a_cap_holds_for_what_is_masked(tmp_path: Path) -> None:
    taken = capture(tmp_path / "file", b"aaaa", most=5, mask=Mask([b"a"]))
    assert ((tmp_path / "file").read_bytes(), taken.size, taken.truncated) == (b"*****", 5, True)


def flood(path: Path, count: int, most: int, mask: Mask | None = None) -> tuple[Capture, float, float]:
    """A capture of so many bytes written in one go; the seconds that it took, and of processor time of the reader."""

    async def take() -> tuple[Capture, float, float]:
        read, write = os.pipe()
        os.set_blocking(read, False)

        def work() -> None:
            left, block = count, b"0123456789abcdef" * 4096
            while left:
                left -= os.write(write, block[:left])
            os.close(write)

        writer = threading.Thread(target=work)
        began, used = time.perf_counter(), time.thread_time()
        capture = reader(read, path, most, mask)
        writer.start()
        await capture.finish(20)
        writer.join()
        return capture, time.perf_counter() - began, time.thread_time() - used

    return asyncio.run(take())


@pytest.mark.parametrize("mask", [None, Mask([b"fed"])], ids=["moved", "read"])
def test_a_flood_is_kept_whole(tmp_path: Path, mask: Mask | None) -> None:
    count = 16 << 20
    taken, _, _ = flood(tmp_path / "file", count, count, mask)
    assert (taken.size, taken.truncated) == (count, False)
    assert (tmp_path / "file").read_bytes() == b"0123456789abcdef" * (count // 16)


def test_what_is_dropped_comes_slowly_and_costs_nothing(tmp_path: Path) -> None:
    pipe = 64 * 1024  # the bytes that a pipe holds
    taken, seconds, used = flood(tmp_path / "file", 4 << 20, pipe)
    assert ((tmp_path / "file").stat().st_size, taken.size, taken.truncated) == (pipe, pipe, True)
    assert seconds > (4 << 20) / pipe * 0.009
    assert used < seconds / 4


def test_the_end_of_what_is_masked_is_waited_for(tmp_path: Path) -> None:
    """Even if the writer is still there, and secrets make it slow: what is there is looked through first."""
    data = (b"a" * 32700 + b"c") * 2
    mask = Mask([b"a" * 32700 + b"b%d" % number for number in range(50)])
    taken = capture(tmp_path / "file", data[:65536], mask=mask, open_end=True)
    assert ((tmp_path / "file").read_bytes(), taken.truncated) == (data[:65536], True)


@pytest.mark.parametrize("file", ["/dev/full", "/nowhere/file"])
def test_a_full_disk_does_no_harm_to_what_is_masked(file: str) -> None:
    taken = capture(Path(file), b"hello", mask=Mask([b"x"]))
    assert (taken.size, taken.truncated) == (0, True)


def test_secrets_leave_the_loop_to_others(tmp_path: Path) -> None:
    """Many streams at once, of secrets that were made to be slow to look for: no turn of the loop is long."""
    mask, streams = Mask([b"a" * 32700 + b"b%d" % number for number in range(50)]), 20

    async def main() -> tuple[float, float, float]:
        share, captures, writers = LoopShare(0.2), [], []
        for number in range(streams):
            read, write = os.pipe()
            os.set_blocking(read, False)
            os.write(write, ((b"a" * 32700 + b"c") * 2)[:65536])
            writers.append(write)
            captures.append(reader(read, tmp_path / str(number), 1 << 20, mask, share))
        longest, began, used = 0.0, time.perf_counter(), time.thread_time()
        while time.perf_counter() - began < 1:
            before = time.thread_time()
            await asyncio.sleep(0.001)
            longest = max(longest, time.thread_time() - before)
        used, seconds = time.thread_time() - used, time.perf_counter() - began
        for capture, write in zip(captures, writers, strict=True):
            os.close(write)
            capture.close()
        return longest, used, seconds

    longest, used, seconds = asyncio.run(main())
    assert longest < 0.05 * SLOWNESS
    assert used < seconds / 2  # the fifth, and what this test itself takes
