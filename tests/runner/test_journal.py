"""The journal: a process that dies at any byte of it leaves the old state or the new one."""

from __future__ import annotations

import resource
import shutil
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
FIRST, SECOND = uuid.uuid4(), uuid.uuid4()


def result(fence: int, status: str = "FAILED") -> Result:
    return Result(JOB, fence, status, "exit code 3", "runner_00", return_code=3, stdout_bytes=10**12, retry_in=1.5)


def reopened(path: Path) -> dict[int, Leftover]:
    again = Journal(path)
    again.close()
    return {item.fence: item for item in again.leftovers()}


@contextmanager
def successor(path: Path) -> Iterator[Journal]:
    """What a successor would have that began now."""
    copy = path.with_suffix(".copy")
    shutil.copy(path, copy)
    found = Journal(copy)
    yield found
    found.close()
    copy.unlink()


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


@pytest.mark.parametrize("most", [0, 300, 700])
def test_no_line_is_lost_by_compacting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    path = tmp_path / "journal"
    ours = Journal(path)
    ours.enter(FIRST)
    monkeypatch.setattr(journal, "_COMPACT_BYTES", most)
    expected: dict[int, Leftover] = {}

    def look() -> None:
        assert ours.problem() is None
        with successor(path) as then:
            assert {item.fence: item for item in then.leftovers()} == expected
            assert {fence for fence in range(1, 40) if not then.never_begun(FIRST, fence)} == set(expected)

    for fence in range(1, 40):
        ours.begin(JOB, fence, 100 + fence, 5)
        expected[fence] = Leftover(JOB, fence, 100 + fence, 5, None)
        look()
        if fence > 3:
            ours.end(result(fence - 3))
            expected[fence - 3] = Leftover(JOB, fence - 3, 97 + fence, 5, result(fence - 3))
            look()
        if fence > 5 and fence % 7:
            ours.settled(fence - 5)
            del expected[fence - 5]
            look()


def test_what_is_taken_back_never_began(tmp_path: Path) -> None:
    ours = Journal(tmp_path / "journal")
    ours.enter(FIRST)
    ours.begin(JOB, 1, 101, 5)
    with successor(tmp_path / "journal") as theirs:
        assert not theirs.never_begun(FIRST, 1)
    ours.take_back(1)
    with successor(tmp_path / "journal") as theirs:
        assert (theirs.never_begun(FIRST, 1), theirs.leftovers()) == (True, [])
    ours.begin(JOB, 1, 102, 6)
    with successor(tmp_path / "journal") as theirs:
        assert (theirs.never_begun(FIRST, 1), theirs.leftovers()) == (False, [Leftover(JOB, 1, 102, 6, None)])


def test_what_is_not_noted_never_began(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    ours = Journal(path)
    assert not ours.never_begun(FIRST, 1)  # a journal that is new says nothing of what was before it
    ours.enter(FIRST)
    ours.begin(JOB, 1, 101, 5)
    with successor(path) as then:
        for known in (ours, then):
            assert [known.never_begun(FIRST, fence) for fence in (1, 2)] == [False, True]
            assert not known.never_begun(SECOND, 2)  # that has, or had, another journal
    ours.enter(SECOND)
    with successor(path) as then:
        assert (then.never_begun(FIRST, 2), then.never_begun(SECOND, 2)) == (False, True)


def test_who_left_in_good_order_has_left_nothing_to_settle(tmp_path: Path) -> None:
    """What still stands as claimed comes from a database that was restored, and may have run since the backup."""
    ours = Journal(tmp_path / "journal")
    ours.enter(FIRST)
    ours.begin(JOB, 1, 101, 5)
    ours.settled(1)
    ours.leave()
    with successor(tmp_path / "journal") as then:
        assert not then.never_begun(FIRST, 1)
        assert not then.never_begun(FIRST, 2)


@pytest.mark.parametrize("spoiled", ["boot", "line", "nothing", "missing"])
def test_nothing_is_certain_when_lines_may_be_missing(tmp_path: Path, spoiled: str) -> None:
    path = tmp_path / "journal"
    ours = Journal(path)
    ours.enter(FIRST)
    data = path.read_bytes()
    boot = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    if spoiled == "boot":  # as after the power failed
        path.write_bytes(data.replace(boot, bytes(reversed(boot))))
    elif spoiled == "line":
        path.write_bytes(data + b'{"fence": 3, "pid\n')
    elif spoiled == "nothing":
        path.write_bytes(b"")
    else:
        path.unlink()
    for _ in range(2):  # nor the second time, when the first successor died before it had settled anything
        again = Journal(path)
        assert not again.never_begun(FIRST, 2)
        again.close()
    again = Journal(path)
    again.enter(SECOND)
    with successor(path) as then:
        assert then.never_begun(SECOND, 2)


def test_only_its_owner_can_read_a_journal(tmp_path: Path) -> None:
    ours = Journal(tmp_path / "journal")
    ours.begin(JOB, 1, 101, 5)
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o600
    (tmp_path / "journal.new").write_text("")  # left by a process that died
    assert list(reopened(tmp_path / "journal")) == [1]
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o600


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
    (tmp_path / "journal.new" / "in the way").mkdir(parents=True)
    ours.settled(1)
    ours.begin(JOB, 20, 120, 5)
    shutil.rmtree(tmp_path / "journal.new")
    assert set(reopened(path)) == set(range(2, 21))


def test_a_journal_for_which_there_is_no_room_twice_is_compacted_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    ours = Journal(path)
    for fence in range(1, 20):
        ours.begin(JOB, fence, 100 + fence, 5)
    monkeypatch.setattr(journal, "_COMPACT_BYTES", 10)
    with room_for(path, -100):
        ours.settled(1)
        assert [item.name for item in tmp_path.iterdir()] == ["journal"]
    ours.settled(2)
    ours.settled(3)
    assert set(reopened(path)) == set(range(4, 20))  # all that was settled, though it could not be noted


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
