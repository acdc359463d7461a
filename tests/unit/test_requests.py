"""What requests say, read apart: ranges, cursors, ids, times, the Prefer header, sentences about errors."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import uuid_utils.compat
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql

from baselayer.access import Caller
from baselayer.errors import InvalidRequest, NotFound, RangeNotSatisfiable, sentence
from baselayer.fields import Flag, Number, Text, Whole
from baselayer.handler import from_text
from shell_service.handlers.base import decode_cursor, encode_cursor, job_cursor
from shell_service.handlers.jobs import _preferred_wait
from shell_service.handlers.output import parse_range
from shell_service.jobs import Filter, first_id_of, parse_id, public_id


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("bytes=0-", (0, 10)),
        ("bytes=0-0", (0, 1)),
        ("bytes=3-5", (3, 6)),
        ("bytes=9-", (9, 10)),
        ("bytes=3-999999", (3, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-999999", (0, 10)),
        (" bytes=1-2 ", (1, 3)),
    ],
)
def test_ranges(text: str, bounds: tuple[int, int]) -> None:
    assert parse_range(text, 10) == bounds


@pytest.mark.parametrize("text", ["bytes=10-", "bytes=10-20", "bytes=999999999999999999-", "bytes=-0"])
def test_ranges_outside(text: str) -> None:
    with pytest.raises(RangeNotSatisfiable) as caught:
        parse_range(text, 10)
    assert caught.value.headers == {"Content-Range": "bytes */10"}


@pytest.mark.parametrize(
    "text",
    ["", "bytes", "bytes=", "bytes=-", "bytes=5-3", "bytes=a-b", "bytes=1-2,4-5", "items=0-1", "bytes=0-1x", "bytes=٣-",
     "bytes=--1", "bytes=+1-2", "bytes= 1 - 2", "bytes=1.5-2", "bytes=9999999999999999999999-", "bytes=0-\n1"],
)  # fmt: skip
def test_no_ranges(text: str) -> None:
    with pytest.raises(InvalidRequest, match="Range"):
        parse_range(text, 10)


@given(st.text(alphabet="bytes=0123456789-, x", max_size=30), st.integers(0, 100))
def test_a_range_lies_within_or_is_refused(text: str, size: int) -> None:
    try:
        start, end = parse_range(text, size)
    except (InvalidRequest, RangeNotSatisfiable):
        return
    assert 0 <= start < end <= size


@given(st.uuids())
def test_a_cursor_survives_as_text(job_id: uuid.UUID) -> None:
    text = encode_cursor(job_id.bytes)
    assert text.isascii() and "=" not in text
    assert job_cursor(text) == job_id


@given(st.text(max_size=40))
def test_other_cursors_are_refused(text: str) -> None:
    try:
        value = decode_cursor(text, 16)
    except InvalidRequest as error:
        assert error.errors == {"cursor": ["Not a cursor."]}
    else:
        assert value is not None and len(value) == 16


@pytest.mark.parametrize(
    "text", ["", "=", "A", "AAAA", "é" * 22, "A" * 23, "*" * 22, "A" * 22 + "\n", "A" * 10 + " " + "A" * 12]
)
def test_no_cursors(text: str) -> None:
    with pytest.raises(InvalidRequest):
        decode_cursor(text, 16)


@given(st.from_regex(r"[A-Za-z0-9._-]{1,100}", fullmatch=True), st.uuids())
def test_a_job_s_id_survives_as_text(name: str, job_id: uuid.UUID) -> None:
    assert parse_id(public_id(name, job_id)) == (name, job_id)


@given(st.text(max_size=50))
def test_no_text_is_a_job_s_id_by_chance(text: str) -> None:
    with pytest.raises(NotFound):
        parse_id(text)


@pytest.mark.parametrize(
    "text",
    [
        "_" + "0" * 32,
        "job_" + "0" * 31,
        "job_" + "A" * 32,
        "j/b_" + "0" * 32,
        "job_" + "0" * 32 + "\n",
        "a" * 101 + "_" + "0" * 32,
    ],
)
def test_no_ids(text: str) -> None:
    with pytest.raises(NotFound):
        parse_id(text)


# -- filters by time: ids hold milliseconds --------------------------------------------------------------------------

ALICE = Caller(1, "alice", "user", frozenset(), 1, None)


def bounds_of(wanted: Filter) -> list[uuid.UUID]:
    """The ids that a filter by time compares with."""
    found = []
    for condition in wanted.conditions(ALICE):
        parameters = condition.compile(dialect=postgresql.dialect()).params
        found += [value for value in parameters.values() if isinstance(value, uuid.UUID)]
    return found


@given(st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 31), timezones=st.just(UTC)), st.integers(0, 2**40))
def test_filters_by_time_are_exact_to_the_millisecond(created: datetime, tail: int) -> None:
    created = created.replace(microsecond=created.microsecond // 1000 * 1000)
    milliseconds = (created - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    job_id = uuid.UUID(int=first_id_of(milliseconds).int + tail)
    step = timedelta(microseconds=1)

    def after(at: datetime) -> bool:
        return job_id >= bounds_of(Filter(created_after=at))[0]

    def before(at: datetime) -> bool:
        return job_id < bounds_of(Filter(created_before=at))[0]

    assert (after(created - step), after(created), after(created + step)) == (True, False, False)
    assert (before(created - step), before(created), before(created + step)) == (False, False, True)


@pytest.mark.parametrize("at", [datetime.min, datetime.max, datetime(1969, 12, 31, 23, 59, 59, 999_999)])
def test_times_that_no_id_has_do_no_harm(at: datetime) -> None:
    at = at.replace(tzinfo=UTC)
    for wanted in (Filter(created_after=at), Filter(created_before=at)):
        assert len(bounds_of(wanted)) == 1


def test_ids_made_one_after_another_are_in_order() -> None:
    ids = [uuid_utils.compat.uuid7() for _ in range(1000)]
    assert ids == sorted(ids)
    assert first_id_of(ids[0].int >> 80) <= ids[0]


# -- the Prefer header -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefer", "wait"),
    [
        ("", None),
        ("return=minimal", None),
        ("await=5", None),
        ("wait=5", 5),
        ("wait=0", 0),
        ("Wait=300", 300),
        ("respond-async, wait=10", 10),
        ("wait=10; foo=bar", 10),
        ("respond-async;wait=10", 10),
        ('wait="7"', 7),
        ("wait = 7", 7),
    ],
)
def test_prefer(prefer: str, wait: int | None) -> None:
    assert _preferred_wait(prefer) == wait


@pytest.mark.parametrize(
    "prefer", ["wait=301", "wait=-1", "wait=x", "wait=", "wait=1.5", "wait=1e2", "wait=9999999999", "wait=٣"]
)
def test_what_cannot_be_preferred(prefer: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _preferred_wait(prefer)
    assert "Prefer" in caught.value.errors


# -- values in a query, sentences about errors -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        (Whole(low=0, high=9), "7", 7),
        (Whole(low=0, high=9), "-7", -7),
        (Whole(low=0, high=9), "٧", "٧"),
        (Whole(low=0, high=9), "7.0", "7.0"),
        (Whole(low=0, high=9), "9" * 19, "9" * 19),
        (Number(low=0, high=9), "7.5", 7.5),
        (Number(low=0, high=9), "nan", "nan"),
        (Number(low=0, high=9), "1e3", 1000.0),
        (Number(low=0, high=9), "2.5E-3", 0.0025),
        (Number(low=0, high=9), "1e9999", "1e9999"),
        (Flag(), "true", True),
        (Flag(), "1", "1"),
        (Text(), "7", "7"),
        (None, "7", "7"),
    ],
)
def test_values_in_a_query(field: Any, text: str, value: Any) -> None:
    found = from_text(field, text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ({"a": ["Unknown field."]}, "Unknown field a."),
        ({"a": ["Must be text."]}, "The field a is not valid: Must be text."),
        ({"a": ["x."], "b": ["y."], "c": ["z."]}, "The field a is not valid: x. (2 more in data.errors.)"),
        ({"jobs": {3: {"code": ["Must be text."]}}}, "The field jobs.3.code is not valid: Must be text."),
        (
            {"jobs": {3: {"a": ["x."], "b": ["y."]}, 4: {"a": ["z."]}}},
            "The field jobs.3.a is not valid: x. (2 more in data.errors.)",
        ),
        ({"jobs": {3: {"_schema": ["Too many."]}}}, "The field jobs.3 is not valid: Too many."),
        ({"_schema": ["Too many."]}, "Too many."),
    ],
)
def test_sentences(messages: dict[str, Any], text: str) -> None:
    assert sentence(messages, "field") == text
