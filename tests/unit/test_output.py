"""Output files: exact bytes, tails cut between characters, addresses that nobody can choose."""

from __future__ import annotations

import asyncio
import os
import stat
import tempfile
import threading
import time
import uuid
from pathlib import Path

import pytest
import uuid_utils.compat
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shell_service.output import CHUNK, STREAMS, OutputReader, OutputStore, Stream

JOB = uuid.UUID("019a2b3c-4d5e-7f60-a1b2-c3d4e5f60718")


@pytest.fixture
def store(tmp_path: Path) -> OutputStore:
    return OutputStore(tmp_path / "output")


def write(store: OutputStore, data: bytes, attempt: int = 1) -> None:
    descriptor = store.create(JOB, attempt, "stdout")
    os.write(descriptor, data)
    os.close(descriptor)


def pieces(store: OutputStore, start: int, end: int) -> list[bytes]:
    """What a reader is sent of the first attempt's standard output."""

    async def read() -> list[bytes]:
        return [piece async for piece in OutputReader(store).chunks(JOB, 1, "stdout", start, end)]

    return asyncio.run(read())


def test_a_stream_without_a_file_is_empty(store: OutputStore) -> None:
    assert store.size(JOB, 1, "stdout") == 0
    assert store.read(JOB, 1, "stdout", 0, 10) == store.read(JOB, 1, "stdout", -5, 10) == b""
    assert store.tail(JOB, 1, "stdout", 10) == ""
    assert pieces(store, 0, 10) == []
    assert store.beyond(JOB, 1, {"stdout": 0, "stderr": 5}) == {}


def test_streams_and_attempts_have_files_of_their_own(store: OutputStore) -> None:
    write(store, b"one", 1)
    write(store, b"two", 2)
    assert [store.tail(JOB, attempt, "stdout", 10) for attempt in (1, 2, 3)] == ["one", "two", ""]
    assert store.size(JOB, 1, "stderr") == 0


def test_only_the_service_may_read_them(store: OutputStore, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        write(store, b"x")
    finally:
        os.umask(old)
    path = Path(store.path(JOB, 1, "stdout"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750


def test_addresses_are_of_ids_alone(store: OutputStore, tmp_path: Path) -> None:
    path = f"{tmp_path}/output/2025-10-28/18/019a2b3c4d5e7f60a1b2c3d4e5f60718.3.stderr"
    assert store.path(JOB, 3, "stderr") == path


def test_a_day_s_jobs_are_spread(store: OutputStore) -> None:
    folders = {Path(store.path(uuid_utils.compat.uuid7(), 1, "stdout")).parent.name for _ in range(2000)}
    assert len(folders) > 200


def test_long_output_comes_in_pieces(store: OutputStore) -> None:
    data = os.urandom(CHUNK * 2 + 17)
    write(store, data)
    found = pieces(store, 5, len(data) - 5)
    assert b"".join(found) == data[5:-5]
    assert max(map(len, found)) == CHUNK
    assert store.beyond(JOB, 1, {"stdout": 5}) == {"stdout": data[5 : 5 + CHUNK]}
    assert store.beyond(JOB, 1, {"stdout": len(data)}) == {}


def test_a_disk_that_does_not_answer_holds_up_nobody_but_those_who_read_it(tmp_path: Path) -> None:
    silent, answer = threading.Event(), threading.Event()

    class Hung(OutputStore):
        def size(self, job_id: uuid.UUID, attempt: int, stream: Stream) -> int:
            silent.set()
            if not answer.wait(5):
                answer.set()  # one is enough
                raise AssertionError("the loop stands still")
            if stream == "stderr":
                raise OSError("stale")
            return 5

    async def main() -> None:
        reader, before = OutputReader(Hung(tmp_path)), set(threading.enumerate())
        asking = [asyncio.create_task(reader.size(JOB, 1, stream)) for stream in STREAMS for _ in range(100)]
        await asyncio.to_thread(silent.wait, 20)
        begun = time.monotonic()
        for _ in range(10):  # the loop goes on, and threads for others are there
            await asyncio.to_thread(time.monotonic)
        assert time.monotonic() - begun < 5
        assert sum("outputs" in thread.name for thread in set(threading.enumerate()) - before) == 1
        answer.set()
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert found[:100] == [5] * 100
        assert {str(error) for error in found[100:]} == {"stale"}

    asyncio.run(main())


@given(st.text(max_size=30), st.integers(4, 40))
def test_a_tail_begins_with_a_whole_character(text: str, most: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = OutputStore(Path(folder))
        write(store, text.encode())
        tail = store.tail(JOB, 1, "stdout", most)
    assert text.endswith(tail)
    assert len(tail.encode()) <= most
    rest = text[: len(text) - len(tail)]
    assert not rest or len(rest[-1].encode()) + len(tail.encode()) > most or len(text.encode()) == most


@given(st.binary(max_size=30), st.integers(4, 40))
def test_a_tail_of_anything_is_text(data: bytes, most: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = OutputStore(Path(folder))
        write(store, data)
        tail = store.tail(JOB, 1, "stdout", most)
    assert data[-most:].decode(errors="replace").endswith(tail)
    assert len(data[-most:].decode(errors="replace")) - len(tail) <= 3


class Growing(RuleBasedStateMachine):
    """A file that grows, beside the bytes that it should hold."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.store = OutputStore(Path(self.folder.name))
        self.descriptor = self.store.create(JOB, 1, "stdout")
        self.data = b""

    @rule(data=st.binary(min_size=1, max_size=200))
    def grow(self, data: bytes) -> None:
        os.write(self.descriptor, data)
        self.data += data

    @rule(start=st.integers(-300, 600), count=st.integers(1, 300))
    def read(self, start: int, count: int) -> None:
        begin = max(0, len(self.data) + start) if start < 0 else start
        assert self.store.read(JOB, 1, "stdout", start, count) == self.data[begin : begin + count]

    @rule(start=st.integers(0, 600), end=st.integers(0, 600))
    def read_all(self, start: int, end: int) -> None:
        assert b"".join(pieces(self.store, start, end)) == self.data[start:end]

    @invariant()
    def the_size_is_right(self) -> None:
        assert self.store.size(JOB, 1, "stdout") == len(self.data)

    def teardown(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)
            self.folder.cleanup()


TestGrowing = Growing.TestCase
TestGrowing.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
