"""Secrets in what is kept of a job's output, and in what is said of it: replaced by ``***``."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable

MASK = b"***"
_SHORTEST_LINE = 4  # bytes; shorter lines of a longer secret are no secrets
_MOST_LINES = 512  # that are looked for one by one: each costs a search of all output


class Mask:
    """Replaces secrets in a stream that comes in pieces; one of them may lie across any number of these.

    Of secrets of several lines each line counts as well, as programs print them one by one. Only what could be the
    beginning of a secret is held back. A program that encodes or splits a secret before it prints it is not stopped.
    """

    def __init__(self, values: Iterable[bytes]) -> None:
        """`values` are the secrets; an empty one is none."""
        values = list(values)
        lines = [line for value in values for line in value.splitlines() if len(line) >= _SHORTEST_LINE]
        whole = [part for value in values for part in (value, value.strip()) if part]
        self._secrets = {*whole, *lines[:_MOST_LINES]}
        self._longest = max(map(len, self._secrets), default=0)
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """What can be passed on after this piece."""
        data = self._held + data
        begins, at, parts = self._beginning(data, 0), 0, []
        for start, end in _places(data, self._secrets):
            if start >= begins:
                break
            parts += [data[at:start], MASK]
            at = end
            if at > begins:
                begins = self._beginning(data, at)
        self._held = data[begins:]
        return b"".join((*parts, data[at:begins]))

    def flush(self) -> bytes:
        """What was held back: the stream has ended."""
        data, self._held = self._held, b""
        return self._whole(data)

    def text(self, text: str) -> str:
        """A text of its own without the secrets."""
        return self._whole(text.encode(errors="surrogateescape")).decode(errors="replace")

    def _whole(self, data: bytes) -> bytes:
        at, parts = 0, []
        for start, end in _places(data, self._secrets):
            parts += [data[at:start], MASK]
            at = end
        return b"".join((*parts, data[at:]))

    def _beginning(self, data: bytes, start: int) -> int:
        """Where the longest end of `data` begins that could be the beginning of a secret, but is not all of it."""
        start = max(start, len(data) - self._longest + 1)
        found = len(data)
        for secret in self._secrets:
            at = data.find(secret[:1], max(start, len(data) - len(secret) + 1))
            while 0 <= at < found:
                if secret.startswith(data[at:]):
                    found = at
                at = data.find(secret[:1], at + 1)
        return found


def _places(data: bytes, secrets: Collection[bytes]) -> Iterable[tuple[int, int]]:
    """Where secrets are, from left to right; where two begin, the longer one, and none that overlaps the one before.

    By one search for each, as an expression for all of them could be made to take for ever.
    """
    places = [(at, -len(secret), secret) for secret in secrets if (at := data.find(secret)) >= 0]
    heapq.heapify(places)
    done = 0
    while places:
        start, _, secret = places[0]
        if start >= done:
            done = start + len(secret)
            yield start, done
        following = data.find(secret, done)
        if following >= 0:
            heapq.heapreplace(places, (following, -len(secret), secret))
        else:
            heapq.heappop(places)
