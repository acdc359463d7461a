"""Log lines: whatever is logged, a line stays one line and moves no cursor."""

from __future__ import annotations

import logging
import re
import sys

from hypothesis import example, given
from hypothesis import strategies as st

from baselayer import log, token

# Control characters, and those that change the direction in which text is shown.
HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO    - name: ")


def formatted(message: str, *args: object, exc_info: object = None) -> str:
    record = logging.LogRecord("name", logging.INFO, "path", 1, message, args, exc_info)  # type: ignore[arg-type]
    return log.LineFormatter().format(record)


def test_a_line() -> None:
    line = formatted("hello %s", "world")
    assert LINE.match(line)
    assert line.endswith(": hello world")


@given(st.text())
@example("\u200f\u2028\u202a\u202e\u2066\u2069")
def test_no_text_forges_a_line(text: str) -> None:
    first, *others = formatted("said: %s", text).split("\n")
    assert LINE.match(first)
    assert all(line.startswith("    ") for line in others)
    assert not HIDDEN.search("".join([first, *others]))


@given(st.text(st.characters(blacklist_categories=["Cc", "Cs", "Cf", "Zl", "Zp"])))
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert log.escape(text) == text


def test_a_line_is_not_endless() -> None:
    line = formatted("said: %s", "x" * 1_000_000)
    assert len(line) < 20_000
    assert line.endswith("x ...")


def test_no_token_is_in_it() -> None:
    minted = token.mint()
    try:
        raise ValueError(minted)
    except ValueError:
        text = formatted("%s: %s", "it is", minted, exc_info=sys.exc_info())
    assert minted[:30] not in text
    assert text.count("shs_***") == 2


def test_tracebacks_are_indented() -> None:
    try:
        raise ValueError("broken\x1b[2J")
    except ValueError:
        lines = formatted("failed", exc_info=sys.exc_info()).split("\n")
    assert lines[1] == "    Traceback (most recent call last):"
    assert lines[-1] == "    ValueError: broken\\x1b[2J"


def test_the_request_is_named() -> None:
    reset = log.request_id.set("abc")
    try:
        assert " abc name: " in formatted("x")
    finally:
        log.request_id.reset(reset)
