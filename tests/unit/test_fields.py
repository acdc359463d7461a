"""Fields take what JSON says literally, and say what they expect."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import marshmallow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import ValidationError, fields

from baselayer.fields import Flag, Instant, Items, Number, Pairs, Request, Text, Whole, rfc3339

ODD = [None, True, False, "1", "", " ", "true", [], {}, [1], {"a": 1}, float("nan"), float("inf")]


def refused(field: fields.Field[Any], value: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        field.deserialize(value)
    (message,) = caught.value.messages
    return str(message)


@pytest.mark.parametrize("value", [*ODD, 1.5, -3, -3.0, 11, 1e300, 2**63, -(2**63), 10**400])
def test_no_whole_numbers(value: Any) -> None:
    assert refused(Whole(low=-2, high=10), value)


def test_whole_numbers() -> None:
    values = [Whole(low=-2, high=10).deserialize(value) for value in (-2, 0, 10, 5.0, -0.0)]
    assert values == [-2, 0, 10, 5, 0]
    assert all(type(value) is int for value in values)


@pytest.mark.parametrize("value", [*ODD, 0, 0.0, -0.0, -1e-9, 10.1, 1e308, 10**400])
def test_no_numbers(value: Any) -> None:
    assert refused(Number(low=0, high=10, closed=False), value)


def test_numbers() -> None:
    values = [Number(low=0, high=10).deserialize(value) for value in (0, 1, 0.5, 10)]
    assert values == [0.0, 1.0, 0.5, 10.0]
    assert all(type(value) is float for value in values)


@pytest.mark.parametrize("value", [None, 0, 1, "true", "false", "yes", [], ""])
def test_no_flags(value: Any) -> None:
    assert refused(Flag(), value)


@pytest.mark.parametrize("value", [*ODD[:3], 1, [], {}, b"x", "a\0b", "\0", "", "aaaa"])
def test_no_texts(value: Any) -> None:
    assert refused(Text(low=1, high=3), value)


@given(st.text())
def test_any_text_but_nul(value: str) -> None:
    if "\0" in value:
        assert "NUL" in refused(Text(), value)
    else:
        assert Text().deserialize(value) == value


@pytest.mark.parametrize("value", ["a\n", "\na", "a b", "á", "", "a/b", "a\0"])
def test_a_pattern_is_about_the_whole_text(value: str) -> None:
    assert refused(Text(pattern="[a-z]+"), value)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2030-01-31T12:00:00Z", datetime(2030, 1, 31, 12, tzinfo=UTC)),
        ("2030-01-31t12:00:00z", datetime(2030, 1, 31, 12, tzinfo=UTC)),
        ("2030-01-31T12:00:00.5Z", datetime(2030, 1, 31, 12, 0, 0, 500_000, tzinfo=UTC)),
        ("2030-01-31T12:00:00.123456789Z", datetime(2030, 1, 31, 12, 0, 0, 123_456, tzinfo=UTC)),
        ("2030-01-31T12:00:00+05:30", datetime(2030, 1, 31, 6, 30, tzinfo=UTC)),
        ("2030-01-31T23:30:00-01:00", datetime(2030, 2, 1, 0, 30, tzinfo=UTC)),
    ],
)
def test_times(text: str, at: datetime) -> None:
    assert Instant().deserialize(text) == at
    assert Instant().deserialize(text).tzinfo == UTC


@pytest.mark.parametrize(
    "value",
    [
        *ODD, 0, 1893499200, "2030-01-31", "2030-01-31T12:00:00", "2030-01-31 12:00:00Z", "2030-02-30T12:00:00Z",
        "2030-01-31T12:00:60Z", "2030-01-31T24:00:00Z", "2030-01-31T12:00Z", "20300131T120000Z", "0000-01-01T00:00:00Z",
        "9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00", "2030-01-31T12:00:00+99:00", "٢٠٣٠-01-31T12:00:00Z",
        "2030-01-31T12:00:00Z\n", "2030-W05-4T12:00:00Z", "2030-01-31T12:00:00.Z", "-2030-01-31T12:00:00Z",
    ],
)  # fmt: skip
def test_no_times(value: Any) -> None:
    assert refused(Instant(), value)


offsets = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=offsets))
def test_a_time_survives_the_way_out_and_in(at: datetime) -> None:
    text = rfc3339(at)
    assert text is not None
    assert Instant().deserialize(text) == at == Instant().deserialize(at.isoformat("T", "microseconds"))


def test_no_time_is_null() -> None:
    assert rfc3339(None) is None


class Counted(fields.Field[Any]):
    """Counts how often it was asked."""

    asked = 0

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        Counted.asked += 1
        return value


def test_what_is_too_long_is_not_looked_at() -> None:
    Counted.asked = 0
    assert refused(Items(Counted(), low=1, high=10), [1] * 11)
    assert refused(Items(Counted(), low=1, high=10), [])
    assert refused(Pairs(Counted(), Counted(), high=10), {str(number): 1 for number in range(11)})
    assert Counted.asked == 0
    assert Items(Counted(), high=10).deserialize([1, 2]) == [1, 2]
    assert Pairs(Counted(), Counted(), high=10).deserialize({"a": 1}) == {"a": 1}
    assert Counted.asked == 4


@pytest.mark.parametrize("value", [None, 1, "ab", {"a": 1}])
def test_no_lists(value: Any) -> None:
    assert refused(Items(Text(), high=10), value)


@pytest.mark.parametrize("value", [None, 1, "ab", ["a"]])
def test_no_mappings(value: Any) -> None:
    assert refused(Pairs(Text(), Text(), high=10), value)


class Inner(Request):
    a = Whole(low=0, high=1)


class Outer(Request):
    items = Items(fields.Nested(Inner), high=3)


def test_every_unknown_field_is_named_unless_there_are_far_too_many() -> None:
    schema = Outer(unknown=marshmallow.RAISE)
    assert schema.validate({"b": 1, "c": 2}) == {"b": ["Unknown field."], "c": ["Unknown field."]}
    assert schema.validate({"items": [{"a": 0}, {"x": 1}]}) == {"items": {1: {"x": ["Unknown field."]}}}
    many = {str(number): 0 for number in range(101)}
    assert schema.validate(many) == {"_schema": ["Must have at most 100 fields."]}
    assert schema.validate({"items": [many]}) == {"items": {0: {"_schema": ["Must have at most 100 fields."]}}}
    assert schema.validate({"items": [5]}) == {"items": {0: {"_schema": ["Must be an object."]}}}
