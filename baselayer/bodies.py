"""How much a body holds, as far as that can be told before it is parsed: large ones are no work for the event loop."""

from __future__ import annotations

LARGE_BODY = 32 * 1024  # bytes, from where on what has to be done with a body is worth the way to a thread and back
MOST_VALUES = 200_000  # of a body: parsing as many takes about 30 ms, in which no other thread of the process runs


def has_too_many_values(body: bytes) -> bool:
    """Whether `body`, if it is JSON, holds more than `MOST_VALUES` values and containers.

    A few passes over it, of some milliseconds each for 8 MiB. Commas and brackets inside of texts do not count.
    """
    if _marks(body) <= MOST_VALUES:  # so it is with nearly all
        return False
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if plain.count(b'"') > 4 * MOST_VALUES:  # each text is a value or a key
        return True
    return _marks(b"".join(plain.split(b'"')[::2])) > MOST_VALUES


def _marks(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")
