"""Marshmallow fields that take what JSON says literally: no ``"1"`` for a number, no ``true`` for 1, no NUL."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar

from marshmallow import Schema, ValidationError, fields, pre_load, validate

from baselayer.config import parse_bytes


def about(text: str, example: Any = None) -> dict[str, Any]:
    """The description of a field, and an example, for the API document."""
    return {"description": text} if example is None else {"description": text, "example": example}


class Text(fields.String):
    """Text, of `low` to `high` characters, without NUL."""

    def __init__(self, *, low: int = 0, high: int | None = None, pattern: str | None = None, **kwargs: Any) -> None:
        checks = list(kwargs.pop("validate", []))
        if low or high is not None:
            checks.append(validate.Length(min=low or None, max=high))
        self.pattern = pattern
        if pattern:
            error = f"Must match {pattern}.".replace("{", "{{").replace("}", "}}")  # marshmallow formats it
            checks.append(validate.Regexp(re.compile(rf"\A(?:{pattern})\Z"), error=error))
        super().__init__(validate=checks, **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        if not isinstance(value, str):
            raise ValidationError("Must be text.")
        if "\0" in value:
            raise ValidationError("Must not contain a NUL character.")
        return value


class Whole(fields.Integer):
    """A whole number from `low` to `high`."""

    def __init__(self, *, low: int, high: int, **kwargs: Any) -> None:
        super().__init__(validate=validate.Range(low, high), **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> int:
        if isinstance(value, float) and value.is_integer():  # JSON knows one kind of number: 5.0 is 5
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValidationError("Must be a whole number.")
        return value


class Number(fields.Float):
    """A finite number from `low` to `high`; `low` itself only when `closed`."""

    def __init__(self, *, low: float, high: float, closed: bool = True, **kwargs: Any) -> None:
        self.closed = closed
        super().__init__(validate=validate.Range(low, high, min_inclusive=closed), **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):
                if math.isfinite(number := float(value)):
                    return number
        raise ValidationError("Must be a number.")


class Size(fields.Field[int]):
    """A number of bytes from `low` to `high`: whole, or as text with a unit, such as ``"256MiB"``."""

    _FORM = r"\d{1,15}(\.\d{1,9})?(B|KiB|MiB|GiB|TiB)?"

    def __init__(self, *, low: int, high: int, **kwargs: Any) -> None:
        self.low, self.high = low, high
        super().__init__(validate=validate.Range(low, high), **kwargs)

    @property
    def json_schema(self) -> dict[str, Any]:
        """How the API document describes it."""
        number = {"type": "integer", "minimum": self.low, "maximum": self.high}
        kinds = [number, {"type": "string", "pattern": f"^{self._FORM}$"}]
        return {"oneOf": [*kinds, {"type": "null"}] if self.allow_none else kinds}

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> int:
        if isinstance(value, str) and re.fullmatch(self._FORM, value, re.ASCII):
            return parse_bytes(value)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValidationError('Must be a size: bytes as a whole number, or text such as "256MiB".')
        return value


class Flag(fields.Boolean):
    """true or false."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise ValidationError("Must be true or false.")
        return value


class Items(fields.List):
    """A list of `low` to `high` items, each another if `unique`; their number is looked at before any of them is."""

    def __init__(
        self, inner: fields.Field[Any], *, high: int, low: int = 0, unique: bool = False, **kwargs: Any
    ) -> None:
        self._number = validate.Length(min=low or None, max=high)
        self.json_schema = {"uniqueItems": True} if unique else {}
        kwargs["error_messages"] = {"invalid": "Must be a list."}
        super().__init__(inner, validate=[self._number, *([_each_once] if unique else [])], **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> list[Any]:
        if isinstance(value, list):
            self._number(value)
        return super()._deserialize(value, attr, data, **kwargs)


def _each_once(items: list[Any]) -> None:
    if len(set(items)) < len(items):
        raise ValidationError("Must not name anything twice.")


class Pairs(fields.Dict):
    """A mapping of up to `high` pairs; their number is looked at before any of them is."""

    def __init__(self, keys: fields.Field[Any], values: fields.Field[Any], *, high: int, **kwargs: Any) -> None:
        self._number = validate.Length(max=high)
        kwargs["error_messages"] = {"invalid": "Must be an object."}
        super().__init__(keys=keys, values=values, validate=self._number, **kwargs)

    def _deserialize(
        self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any
    ) -> dict[Any, Any]:
        if isinstance(value, dict):
            self._number(value)
        found: dict[Any, Any] = super()._deserialize(value, attr, data, **kwargs)
        return found


class Request(Schema):
    """A part of a request. However many fields it is given, only a few are looked at and named as unknown."""

    #: Whether something must be said though no field by itself is required.
    NEEDED: ClassVar[bool] = False

    error_messages = {"type": "Must be an object."}
    _MOST_FIELDS = 100

    @pre_load
    def _count_fields(self, data: Any, **kwargs: Any) -> Any:
        if isinstance(data, Mapping) and len(data) > self._MOST_FIELDS:
            raise ValidationError(f"Must have at most {self._MOST_FIELDS} fields.")
        return data


class Instant(fields.Field[datetime]):
    """A time in RFC 3339 with its offset, such as ``2030-01-31T12:00:00Z``; becomes UTC."""

    _FORM = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> datetime:
        if isinstance(value, str) and self._FORM.fullmatch(value):
            try:
                return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", value.upper())).astimezone(UTC)
            except (ValueError, OverflowError):
                pass
        raise ValidationError("Must be a time such as 2030-01-31T12:00:00Z.")

    def _serialize(self, value: Any, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        return rfc3339(value)


def rfc3339(value: datetime | None) -> str | None:
    """`value` in UTC as RFC 3339 with microseconds, such as ``2030-01-31T12:00:00.000000Z``."""
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z" if value else None
