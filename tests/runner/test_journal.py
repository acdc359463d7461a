"""The journal: a process that dies at any byte of it leaves the old state or the new one."""

from __future__ import annotations

import resource
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shell_service import journal
from shell_service.journal import Journal, Leftover
from shell_service.queue import Result

JOB = uuid.UUID("01890a5d-ac96-774b-bcce-b302099a8057")


def result(fence: int, status: str = "FAILED") -> Result:
    return Result(JOB, fence, status, "exit code 3", "runner_00", return_code=3, stdout_bytes=10**12, retry_in=1.5)


def reopened(path: Path) -> dict[int, Leftover]:
    again = Journal(path)
    again.close()
    return {item.fence: item for item in again.leftovers()}


def test_what_is_not_settled_is_known_to_the_successor(tmp_path: Path) -> None:
    ours = Journal(tmp_path / "journal")
    for fence in (1, 2, 3):
        ours.begin(JOB, fence, 100 + fence, 5)
    ours.end(result(2))
    ours.end(result(3))
    ours.settled(3)
    assert reopened(tmp_path / "journal") == {
        1: Leftover(JOB, 1, 101, 5, None),
        2: Leftover(JOB, 2, 102, 5, result(2)),
    }


def test_a_journal_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_COMPACT_BYTES", 2000)
    ours = Journal(tmp_path / "journal")
    ours.begin(JOB, 7, 1, 2)
    for fence in range(100, 200):
        ours.begin(JOB, fence, fence, 5)
        ours.end(result(fence))
        ours.settled(fence)
    assert (tmp_path / "journal").stat().st_size < 4000
    assert list(reopened(tmp_path / "journal")) == [7]


def test_rubbish_is_passed_over(tmp_path: Path) -> None:
    ours = Journal(tmp_path / "journal")
    ours.begin(JOB, 1, 101, 5)
    with (tmp_path / "journal").open("ab") as file:
        file.write(b'\xff\x00 rubbish\n{"fence": 9}\n[]\nnull\n{"fence"')
    assert list(reopened(tmp_path / "journal")) == [1]


steps = st.lists(st.tuples(st.sampled_from(["begin", "end", "settled"]), st.integers(1, 3)), max_size=8)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps, data=st.data())
def test_a_crash_at_any_byte_leaves_old_or_new(
    tmp_path: Path, steps: list[tuple[str, int]], data: st.DataObject
) -> None:
    path = tmp_path / uuid.uuid4().hex
    ours = Journal(path)
    states, ends = [reopened(path)], [path.stat().st_size]
    for what, fence in steps:
        if what == "begin":
            ours.begin(JOB, fence, 100 + fence, 5)
        elif what == "end":
            ours.end(result(fence))
        else:
            ours.settled(fence)
        copy = path.with_suffix(".copy")
        copy.write_bytes(path.read_bytes())
        states.append(reopened(copy))
        ends.append(path.stat().st_size)
    whole = path.read_bytes()
    cut = data.draw(st.integers(ends[0], len(whole)))
    torn = path.with_suffix(".torn")
    torn.write_bytes(whole[:cut])
    known = max(number for number, end in enumerate(ends) if end <= cut)
    found = reopened(torn)
    # The line that was being written counts or does not; its last byte alone, the newline, makes no difference.
    assert found in (states[known], states[min(known + 1, len(states) - 1)])
    # What is written after a torn line is not lost with it.
    later = Journal(torn)
    later.begin(JOB, 9, 109, 5)
    later.close()
    assert reopened(torn) == {**found, 9: Leftover(JOB, 9, 109, 5, None)}


def test_a_crash_while_compacting_leaves_the_old(tmp_path: Path) -> None:
    ours = Journal(tmp_path / "journal")
    ours.begin(JOB, 1, 101, 5)
    (tmp_path / "journal.new").write_text('{"fence": 2, "job')
    assert list(reopened(tmp_path / "journal")) == [1]


@contextmanager
def room_for(path: Path, count: int) -> Iterator[None]:
    """Let no file grow larger than this one is and so many bytes, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_line_for_which_there_is_no_room_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    ours = Journal(path)
    ours.begin(JOB, 1, 101, 5)
    ours.begin(JOB, 2, 102, 5)
    with room_for(path, 20):
        with pytest.raises(OSError):
            ours.begin(JOB, 3, 103, 5)  # what cannot be noted does not begin
        assert "cannot be written" in str(ours.problem())
        ours.end(result(1))  # whereas a result is as good as ever
        ours.settled(2)  # it will be told once more
    assert ours.problem() is None
    ours.end(result(2))
    assert reopened(path) == {1: Leftover(JOB, 1, 101, 5, None), 2: Leftover(JOB, 2, 102, 5, result(2))}


def test_a_journal_that_cannot_be_compacted_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    ours = Journal(path)
    for fence in range(1, 20):
        ours.begin(JOB, fence, 100 + fence, 5)
    monkeypatch.setattr(journal, "_COMPACT_BYTES", 10)
    (tmp_path / "journal.new").symlink_to("/dev/full")
    ours.settled(1)
    assert set(reopened(path)) == set(range(2, 20))
    assert [item.name for item in tmp_path.iterdir()] == ["journal"]


def test_looking_for_room_leaves_nothing(tmp_path: Path) -> None:
    ours = Journal(tmp_path / "journal")
    assert ours.problem() is None
    assert (tmp_path / "journal").stat().st_size == 0


def test_a_result_that_cannot_be_noted_is_no_error(tmp_path: Path) -> None:
    ours = Journal(tmp_path / "journal")
    ours.begin(JOB, 1, 101, 5)
    ours.close()  # as when the disk is full: nothing can be written any more
    with pytest.raises(OSError):
        ours.begin(JOB, 2, 102, 5)  # whereas a script that cannot be noted does not begin
    ours.end(result(1))
