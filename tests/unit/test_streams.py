"""Following: where it goes on, and where text may be cut."""

from __future__ import annotations

import asyncio
import codecs
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import uuid_utils.compat
from hypothesis import given
from hypothesis import strategies as st

from baselayer.errors import InvalidRequest, NotAuthenticated
from shell_service import streams
from shell_service.handlers.output import _encode
from shell_service.hub import Hub
from shell_service.jobs import Found
from shell_service.output import STREAMS, OutputReader, OutputStore
from shell_service.streams import Event, Follower, Position, Ticker, whole_characters

positions = st.builds(Position, st.integers(0, 99_999), st.integers(0, 10**15 - 1), st.integers(0, 10**15 - 1))


@given(positions)
def test_a_position_survives_as_text(position: Position) -> None:
    assert Position.parse(str(position)) == position


@given(st.text())
def test_other_text_is_refused(text: str) -> None:
    if not re.fullmatch(r"[0-9]{1,5}-[0-9]{1,15}-[0-9]{1,15}", text) and text:
        with pytest.raises(InvalidRequest, match="Last-Event-ID"):
            Position.parse(text)


@pytest.mark.parametrize(
    "text", ["-1-0-0", "1-0", "1-0-0-0", "1--1-0", "1-0-0\n", " 1-0-0", "١-0-0", f"1-{10**15}-0", "x"]
)
def test_no_positions(text: str) -> None:
    with pytest.raises(InvalidRequest):
        Position.parse(text)


@pytest.mark.parametrize("text", [None, ""])
def test_without_one_it_begins_at_the_start(text: str | None) -> None:
    assert Position.parse(text) == Position(0, 0, 0)


def test_a_position_moves_by_stream() -> None:
    moved = Position(2, 5, 7).moved("stdout", 10).moved("stderr", 1)
    assert moved == Position(2, 15, 8)
    assert (moved.at("stdout"), moved.at("stderr")) == (15, 8)


@given(st.text(min_size=1), st.data())
def test_text_cut_anywhere_decodes_to_itself(text: str, data: st.DataObject) -> None:
    """What a follower gets in pieces of any size is the text, with nothing replaced."""
    raw = text.encode()
    rest, got = b"", ""
    while raw:
        size = data.draw(st.integers(1, 9))
        rest, raw = rest + raw[:size], raw[size:]
        count = whole_characters(rest)
        got += rest[:count].decode()
        rest = rest[count:]
    assert (got, rest) == (text, b"")


@given(st.binary(max_size=40))
def test_what_is_held_back_is_at_most_an_unfinished_character(data: bytes) -> None:
    count = whole_characters(data)
    held = data[count:]
    assert len(held) < 4
    if held:
        assert held[0] >= 0xC0
        assert all(byte & 0xC0 == 0x80 for byte in held[1:])
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    assert data[:count].decode(errors="replace") == decoder.decode(data[:count], final=True)


def test_bytes_that_are_no_text_are_not_held_back() -> None:
    for data in (b"\x80" * 10, b"abc\xff", b"\xe2\x82\xac\x80", b""):
        assert whole_characters(data) in (len(data), len(data) - 1)
    assert whole_characters(b"\x80" * 10) == 10
    assert whole_characters("€".encode()[:2]) == 0
    assert whole_characters("a€".encode()[:3]) == 1
    assert whole_characters("a€".encode()) == 4


# -- a follower of a job that says nothing ---------------------------------------------------------------------------


def follower_of(folder: Path, status: str, may_go_on: Callable[[], Awaitable[None]]) -> Follower:
    """Follows a job that stays as it is and has printed nothing."""
    row = SimpleNamespace(
        id=uuid_utils.compat.uuid7(),
        name="job",
        attempt=1,
        running_attempt=1,
        running_since=datetime.now(UTC) if status == "RUNNING" else None,
        final_status=None,
        reason=None,
    )

    async def look() -> Found:
        return Found(row)  # type: ignore[arg-type]

    hub = Hub(None)  # type: ignore[arg-type]  # asks its database only when it runs
    return Follower(hub, Ticker(0.001), OutputReader(OutputStore(folder)), look, may_go_on, STREAMS, text=True)


async def nothing() -> None:
    """The reader may go on."""


@pytest.mark.parametrize("status", ["RUNNING", "PENDING"])
def test_a_silent_job_s_followers_hear_that_somebody_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(streams, "_RECHECK_SECONDS", 0.01)

    async def main() -> list[Event]:
        found = []
        async for event in follower_of(tmp_path, status, nothing).events(Position()):
            found.append(event)
            if len(found) == 3:
                break
        return found

    first, *others = asyncio.run(main())
    assert (first.kind, first.job.status) == ("status", status)
    assert [event.kind for event in others] == ["heartbeat", "heartbeat"]
    assert {event.position for event in others} == {Position(attempt=1)}
    assert _encode(others[0]) == b":\n\n"  # a comment, which moves no Last-Event-ID


def test_a_follower_s_right_is_looked_at_while_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_RECHECK_SECONDS", 0.01)
    asked = 0

    async def twice() -> None:
        nonlocal asked
        asked += 1
        if asked > 2:
            raise NotAuthenticated

    async def main() -> None:
        async for event in follower_of(tmp_path, "PENDING", twice).events(Position()):
            assert event.kind == "status"

    with pytest.raises(NotAuthenticated):
        asyncio.run(asyncio.wait_for(main(), 5))
