"""How the documentation's examples are found and compared."""

from __future__ import annotations

import pytest

from tests.docs import pages


@pytest.mark.parametrize(
    ("pattern", "printed", "same"),
    [
        ("a\nb\n", "a\nb\n", True),
        ("a\nb\n", "a\nc\n", False),
        ("id ...!", "id 7!", True),
        ("id ...!", "id 7\n!", False),
        ("a\n...\nz", "a\nb\nc\nz", True),
        ("a\n    ...\nz", "a\nz", True),
        ("a\n...\nz", "a\nb\nc", False),
        ("a.b", "axb", False),
    ],
)
def test_output_is_compared_with_what_a_page_shows(pattern: str, printed: str, same: bool) -> None:
    assert pages.matches(pattern, printed) == same


def test_there_are_examples() -> None:
    names = {path.name for path in pages.pages()}
    assert {"quickstart.md", "submit.md", "follow.md", "cancel.md", "tokens.md", "backup.md", "sandbox.md"} <= names
