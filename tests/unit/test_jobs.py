"""How much of a job is read."""

from __future__ import annotations

from shell_service.jobs import RECORD, REQUEST, STANDING


def test_what_can_be_long_is_read_only_where_it_is_needed() -> None:
    long = {"code", "args", "env", "stdin"}
    assert long.isdisjoint(STANDING.selected_columns.keys())
    assert long & set(RECORD.selected_columns.keys()) == long - {"stdin"}
    assert long <= set(REQUEST.selected_columns.keys())
