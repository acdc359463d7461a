"""Secrets in what is kept of a job's output, and in what is said of it: replaced by ``***``."""

from __future__ import annotations

import heapq
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice

MASK = b"***"
_LINE = re.compile(rb"[^\r\n]{4,}")  # shorter lines of a longer secret are no secrets
_MOST_LINES = 512  # that are looked for one by one: each costs a search of all output
_PROBE = 16  # bytes of a secret that are looked for before all of it
_TRIES = 16  # places at an end that are compared with a secret; at least the `_PROBE` - 1 last ones


class Mask:
    """The secrets of an attempt, as they are looked for.

    Of secrets of several lines each line counts as well, as programs print them one by one. A program that encodes or
    splits a secret before it prints it is not stopped.
    """

    def __init__(self, values: Iterable[bytes]) -> None:
        """`values` are the secrets; an empty one is none. For many long ones this takes some 10 ms."""
        values = list(values)
        lines = (line.group() for value in values for line in _LINE.finditer(value))
        whole = (part for value in values for part in (value, value.strip()) if part)
        self._parts = _parents({*whole, *islice(lines, _MOST_LINES)})

    def stream(self) -> Masking:
        """For a stream that begins."""
        return Masking(self._parts)

    def text(self, text: str) -> str:
        """A text of its own without the secrets."""
        stream = self.stream()
        data = b"".join((*stream.feed(text.encode(errors="surrogateescape")), *stream.end()))
        return data.decode(errors="replace")


class Masking:
    """Replaces secrets in a stream that comes in pieces; one of them may lie across any number of these.

    What is passed on comes bit by bit, and none of these takes long to find (below a millisecond; there may be nothing
    in it), so that others can have their turn in between. Where two secrets begin, the longer one counts, and none that
    overlaps the one before. Only what could be the beginning of a secret is held back, and where it would take many
    comparisons to tell, all that might be; it is always less than the longest secret.
    """

    def __init__(self, parts: Mapping[bytes, bytes | None]) -> None:
        """`parts` are what is replaced; with each the longest other one that it begins with."""
        self._held = b""
        self._parents = parts
        # Of each part the next place where it is (True), or where an end of the data begins that it may begin with:
        # at the latest the very end. So nothing is searched twice. It is one search for each, as an expression for all
        # of them could be made to take for ever.
        self._places = [(0, -len(part), False, part) for part in parts]
        # By the part that they begin with, those that are nowhere before it and were not searched further: many that
        # begin with each other would be found in the same places, again and again.
        self._asleep: defaultdict[bytes, list[bytes]] = defaultdict(list)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What can be passed on after this piece. To be used up before the next one."""
        return self._pass_on(self._held + data, last=False)

    def end(self) -> Iterator[bytes]:
        """What was held back: the stream has ended."""
        return self._pass_on(self._held, last=True)

    def _pass_on(self, data: bytes, last: bool) -> Iterator[bytes]:
        places: list[tuple[int, int, bool, bytes]] = []
        for place in self._places:
            heapq.heappush(places, place if place[2] else _next(data, place[3], place[0]))
            yield b""
        done = 0
        while places:
            start, _, whole, part = places[0]
            if start < done and (parent := self._parents[part]):
                self._asleep[parent].append(part)
                heapq.heappop(places)
            elif start < done:
                heapq.heapreplace(places, _next(data, part, done))
            elif whole and part in self._asleep:
                for longer in self._asleep.pop(part):
                    heapq.heappush(places, _next(data, longer, start))
                    yield b""
            elif whole:
                yield data[done:start] + MASK
                done = start + len(part)
            elif last:  # the rest of it will not come
                heapq.heappop(places)
            else:
                break
            yield b""
        begins = places[0][0] if places else len(data)
        self._held = data[begins:]
        self._places = [(start - begins, order, whole, part) for start, order, whole, part in places]
        yield data[done:begins]


def _parents(parts: Collection[bytes]) -> dict[bytes, bytes | None]:
    """With each part the longest other one that it begins with."""
    found: dict[bytes, bytes | None] = {}
    parent: bytes | None = None
    for part in sorted(parts):  # so that it comes after those that it begins with, and what begins with these
        while parent is not None and not part.startswith(parent):
            parent = found[parent]
        found[part] = parent
        parent = part
    return found


def _next(data: bytes, part: bytes, start: int) -> tuple[int, int, bool, bytes]:
    """The next place of `part`: where it is, or where it may begin, and which of the two."""
    # Searching for a long one costs its length even before anything is compared. Where it is near, that is spared.
    at = data.find(part[:_PROBE], start)
    if at >= 0 and not data.startswith(part, at):
        at = data.find(part, at + 1)
    if at >= 0:
        return at, -len(part), True, part
    return _beginning(data, part, max(start, len(data) - len(part) + 1)), -len(part), False, part


def _beginning(data: bytes, part: bytes, start: int) -> int:
    """Where the longest end of `data` begins that `part` begins with; before it, if that takes too long to tell."""
    for probe, at in ((part[:_PROBE], start), (part[:1], max(start, len(data) - _PROBE + 1))):
        for _ in range(_TRIES):
            at = data.find(probe, at)
            if at < 0:
                break
            if part.startswith(data[at:]):
                return at
            at += 1
        else:
            return at
    return len(data)
