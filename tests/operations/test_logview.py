"""The log view: every byte once, at once, whatever rotation does meanwhile."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselayer.logview import Follower, paint
from shell_service.settings import ROOT
from tests.stack import write_config
from tests.waiting import eventually


def rotate(path: Path, keep: int = 5) -> None:
    """What supervisor does to a log that has grown too large."""
    for number in range(keep - 1, 0, -1):
        older = Path(f"{path}.{number}")
        if older.exists():
            older.replace(f"{path}.{number + 1}")
    path.replace(f"{path}.1")
    path.touch()


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def lines(follower: Follower) -> list[tuple[str, str]]:
    return [(name, line.decode()) for name, line in follower.read()]


def test_begins_with_the_last_lines(tmp_path: Path) -> None:
    append(tmp_path / "app.log", "".join(f"{number}\n" for number in range(50)))
    assert lines(Follower(tmp_path, 3)) == [("app", "47"), ("app", "48"), ("app", "49")]


@pytest.mark.parametrize(
    ("text", "last", "shown"),
    [
        ("", 3, ["", "end"]),
        ("one\n", 0, ["", "end"]),
        ("one", 0, ["", "end"]),
        ("one\n", 1, ["one", "", "end"]),
        ("one", 1, ["one", "end"]),
        ("one\ntwo\n", 1, ["two", "", "end"]),
        ("one\ntwo\nthr", 1, ["thr", "end"]),
        ("one\ntwo\nthr", 2, ["two", "thr", "end"]),
        ("one\ntwo\n", 9, ["one", "two", "", "end"]),
    ],
)
def test_begins_at_a_line(tmp_path: Path, text: str, last: int, shown: list[str]) -> None:
    append(tmp_path / "app.log", text)
    follower = Follower(tmp_path, last)
    append(tmp_path / "app.log", "\nend\n")
    assert [line for _, line in lines(follower)] == shown


def test_new_files_are_read_from_their_beginning(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    append(tmp_path / "late.log", "first\n")
    assert lines(follower) == [("late", "first")]


def test_a_line_is_shown_once_it_has_ended(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    append(tmp_path / "app.log", "ab")
    assert lines(follower) == []
    append(tmp_path / "app.log", "c\n")
    assert lines(follower) == [("app", "abc")]


def test_an_emptied_file_is_read_again(tmp_path: Path) -> None:
    append(tmp_path / "app.log", "long line\n")
    follower = Follower(tmp_path, 0)
    assert lines(follower) == []
    (tmp_path / "app.log").write_text("new\n")
    assert lines(follower) == [("app", "new")]


@given(st.lists(st.one_of(st.just("rotate"), st.just("read"), st.integers(1, 5)), max_size=40))
def test_no_byte_is_lost_or_doubled_by_rotation(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str | int]
) -> None:
    folder = tmp_path_factory.mktemp("log")
    path = folder / "app.log"
    path.touch()
    follower = Follower(folder)
    written = 0
    rotations = 0
    seen: list[str] = []
    for step in steps:
        if step == "read":
            seen += [line for _, line in lines(follower)]
            rotations = 0
        elif step == "rotate":
            if rotations < 4:  # of more than are kept between two looks, nobody can show the first
                rotate(path)
                rotations += 1
        else:
            append(path, "".join(f"line {number}\n" for number in range(written, written + int(step))))
            written += int(step)
    seen += [line for _, line in lines(follower)]
    assert seen == [f"line {number}" for number in range(written)]


def test_control_characters_are_made_visible() -> None:
    shown = paint("app", b"\x1b]0;owned\x07 \x9b2J \xff\r", 5, None)
    assert shown == "app   | \\x1b]0;owned\\x07 \\x9b2J \\xff"
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", shown)


def test_errors_stand_out() -> None:
    assert "\x1b[31m" in paint("app", b"2026 ERROR   - x: y", 5, 36)
    assert "\x1b[31m" not in paint("app", b"2026 INFO    - x: y", 5, 36)


@pytest.fixture
def view(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path, Path]]:
    settings = write_config(tmp_path / "config.yaml", tmp_path / "data")
    settings.log_dir.mkdir(parents=True)
    append(settings.log_dir / "app_00.log", "ready\n")
    output = tmp_path / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.manage", "--config", str(tmp_path / "config.yaml"), "log"],
            cwd=ROOT,
            stdout=file,
            stderr=file,
        )
    yield process, settings.log_dir, output
    process.kill()
    process.wait()


def test_one_ctrl_c_ends_it(view: tuple[subprocess.Popen[bytes], Path, Path]) -> None:
    process, _, output = view
    eventually(lambda: "ready" in output.read_text())
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 0
    assert "Traceback" not in output.read_text()


def test_a_new_file_is_picked_up_within_half_a_second(view: tuple[subprocess.Popen[bytes], Path, Path]) -> None:
    _, folder, output = view
    eventually(lambda: "ready" in output.read_text())
    append(folder / "new.log", "hello\n")
    begun = time.monotonic()
    eventually(lambda: "hello" in output.read_text(), 5)
    assert time.monotonic() - begun < 0.5
    assert "\x1b" not in output.read_text()  # no colours into a file


def test_where_nothing_has_been_logged_it_says_so_and_waits(tmp_path: Path) -> None:
    settings = write_config(tmp_path / "config.yaml", tmp_path / "data")
    with subprocess.Popen(
        [sys.executable, "-m", "services.manage", "--config", str(tmp_path / "config.yaml"), "log"],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            assert process.stderr is not None
            assert process.stdout is not None
            said = process.stderr.readline()
            assert said.startswith(f"nothing has been logged to {settings.log_dir} yet")
            settings.log_dir.mkdir(parents=True)
            append(settings.log_dir / "app_00.log", "ready\n")
            assert "ready" in process.stdout.readline()
        finally:
            process.terminate()
