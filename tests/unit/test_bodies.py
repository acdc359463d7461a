"""Whether a body holds too many values, told before it is parsed."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselayer import bodies
from baselayer.bodies import MOST_VALUES, has_too_many_values


@pytest.mark.parametrize("item", [b"0", b'"x"', b'","', b"[]", b"[0]", b"{}", b'{"a": 0}', b"[" * 500 + b"]" * 500])
def test_too_many_values(item: bytes) -> None:
    assert has_too_many_values(b"[" + b",".join([item] * (MOST_VALUES + 1)) + b"]")
    count = MOST_VALUES // (item.count(b"[") + item.count(b"{") + 1) - 2
    assert not has_too_many_values(b"[" + b",".join([item] * count) + b"]")


@pytest.mark.parametrize("text", [",", "[{", '\\",', "\\\\,", '"', "\n,"])
def test_what_is_in_texts_does_not_count(text: str) -> None:
    assert not has_too_many_values(orjson.dumps({"code": text * MOST_VALUES * 2, "args": [text]}))


def count(value: Any) -> int:
    """Values and containers in `value`, as far as a comma or a bracket tells of them."""
    if isinstance(value, list):
        return 1 + max(0, len(value) - 1) + sum(map(count, value))
    if isinstance(value, dict):
        return 1 + max(0, len(value) - 1) + sum(map(count, value.values()))
    return 0


values = st.recursive(
    st.none() | st.integers(0, 99) | st.text(alphabet='",[{\\\\\n x', max_size=9),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(alphabet='",[\\\\', max_size=3), inner, max_size=5)
    ),
)


@given(values, st.integers(1, 20))
def test_they_are_counted(value: Any, most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "MOST_VALUES", most)
        assert has_too_many_values(orjson.dumps(value)) == (count(value) > most)
