"""Configuration: YAML files laid over one another, read once into frozen dataclasses.

The dataclass is the schema. A nested dataclass is a section, ``dict[str, T]`` a section with free keys, and a field
of type `Bytes` accepts ``"256MiB"`` besides a whole number.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from pathlib import Path
from typing import Any, NewType, TypeVar

import yaml

Bytes = NewType("Bytes", int)
T = TypeVar("T")

_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB)?", re.ASCII)


class ConfigError(Exception):
    """The configuration is not usable; the message names the file, the key and what is expected."""


def parse_bytes(value: object) -> int:
    """A size in bytes from a whole number or a string such as ``"64MiB"``.

    Raises `ValueError` when it is neither.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        return int(float(match[1]) * _UNITS[match[2] or ""])
    raise ValueError(f"{value!r} is not a size: write bytes as a whole number, or with a unit, such as 64MiB")


def load(schema: type[T], defaults: Path, *overlays: Path) -> T:
    """Read `defaults` and lay each of `overlays` over it, key by key; return an instance of `schema`.

    An overlay may hold only comments. Raises `ConfigError` for a missing file, broken YAML, an unknown key
    (the nearest right one is named), a missing key, or a value of the wrong type.
    """
    merged: dict[str, Any] = {}
    for path in (defaults, *overlays):
        layer = _read(path)
        _check_keys(schema, layer, str(path), "")
        merged = _merge(merged, layer)
    return _build(schema, merged, "")


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {type(data).__name__}")
    return data


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            merged[key] = _merge(below[key], value)
        elif value is None and isinstance(below.get(key), dict):
            pass  # a section header with nothing under it keeps its defaults
        else:
            merged[key] = value
    return merged


def _types(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema)


def _check_keys(schema: Any, layer: dict[str, Any], source: str, prefix: str) -> None:
    types = _types(schema)
    for key, value in layer.items():
        if key not in types:
            near = difflib.get_close_matches(str(key), types, n=1, cutoff=0.5)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known here: {', '.join(types)}"
            raise ConfigError(f"{source}: unknown key {prefix}{key}{hint}")
        if dataclasses.is_dataclass(types[key]) and value is not None:
            if not isinstance(value, dict):
                raise ConfigError(f"{source}: {prefix}{key} is {value!r}; expected a section with keys of its own")
            _check_keys(types[key], value, source, f"{prefix}{key}.")


def _build(schema: Any, data: dict[str, Any], prefix: str) -> Any:
    values = {}
    for name, kind in _types(schema).items():
        if name not in data:
            raise ConfigError(f"missing key {prefix}{name}")
        values[name] = _convert(kind, data[name], f"{prefix}{name}")
    return schema(**values)


def _convert(kind: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, f"{key}.")
    if kind is Bytes:
        try:
            return parse_bytes(value)
        except ValueError as error:
            raise ConfigError(f"{key}: {error}") from None
    if typing.get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{key} is {value!r}; expected a mapping")
        of = typing.get_args(kind)[1]
        return {str(name): _convert(of, item, f"{key}.{name}") for name, item in value.items()}
    if typing.get_origin(kind) is typing.Literal:
        if value not in typing.get_args(kind):
            raise ConfigError(f"{key} is {value!r}; expected one of {', '.join(map(repr, typing.get_args(kind)))}")
        return value
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (isinstance(value, bool) and kind is not bool) or not isinstance(value, kind):
        raise ConfigError(f"{key} is {value!r} ({type(value).__name__}); expected {_WORDS.get(kind, kind.__name__)}")
    return value


_WORDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
