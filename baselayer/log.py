"""Logging: one line an event, with the request that caused it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

from baselayer import token

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")

# Logged text may come from anyone: a line stays one line, is shown in the order in which it was written, and moves no
# terminal's cursor.
_CONTROLS = (*range(32), *range(127, 160))
_DIRECTIONS = (0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_ESCAPES = {code: f"\\x{code:02x}" for code in _CONTROLS if code not in (9, 10)} | {
    code: f"\\u{code:04x}" for code in _DIRECTIONS
}
_LONGEST = 16_000  # characters of a message; a traceback has fewer


def escape(text: str) -> str:
    """`text` with its control characters, but tabs and line ends, made visible."""
    return text if text.isprintable() else text.translate(_ESCAPES)  # most is, and that is told much faster


class LineFormatter(logging.Formatter):
    """``time level request logger message``, control characters escaped, further lines (tracebacks) indented.

    What may be a token is left out, wherever it comes from, and so is what is beyond any sensible length.
    """

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        if len(message) > _LONGEST:
            message = message[:_LONGEST] + " ..."
        message = escape(token.masked(message)).replace("\n", "\n    ")
        return f"{time} {record.levelname:<7} {request_id.get()} {record.name}: {message}"


class GatheringHandler(logging.StreamHandler[TextIO]):
    """Writes what a busy event loop logs some lines at once: a write wakes its reader, which costs more than the line.

    A line waits for `SECONDS` at the most; warnings and worse, and what threads log, are written at once.
    """

    SECONDS = 0.05
    _LINES = 256

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record) + self.terminator)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is None or record.levelno >= logging.WARNING or len(self._lines) >= self._LINES:
            self.flush()
        elif len(self._lines) == 1:
            loop.call_later(self.SECONDS, self.flush)

    def flush(self) -> None:
        with self.lock or contextlib.nullcontext():
            lines, self._lines = self._lines, []
            try:
                if lines:
                    self.stream.write("".join(lines))
                super().flush()
            except OSError:
                pass  # nobody reads any more, as when the supervisor was killed: not worth ending for


def set_up(level: str) -> None:
    """Send log lines of `level` and above to standard error, where supervisor collects them."""
    handler = GatheringHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("tornado.access").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)
