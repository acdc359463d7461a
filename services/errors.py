"""What ends a verb with a sentence instead of a traceback."""

from __future__ import annotations


class OperatorError(Exception):
    """Something that an operator can put right; the message says what is wrong and what to do."""
