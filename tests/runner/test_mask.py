"""Secrets in a job's output: gone, wherever the pieces begin in which it comes."""

from __future__ import annotations

import re
import time
from itertools import pairwise, repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shell_service.mask import Mask, Masking
from tests.waiting import SLOWNESS

few = st.sampled_from([b"a", b"b", b"\n"])  # so that secrets overlap, repeat and begin each other
texts = st.lists(few, max_size=30).map(b"".join)
rhythms = st.builds(
    lambda beat, count, end: beat * count + end,
    st.sampled_from([b"a", b"ab", b"ba", b"aab", b"a" * 17 + b"b"]),
    st.integers(1, 60),
    st.sampled_from([b"", b"", b"a", b"b", b"c"]),
)


def masked(secrets: list[bytes], pieces: list[bytes]) -> bytes:
    stream = Mask(secrets).stream()
    return b"".join(map(feed, repeat(stream), pieces)) + b"".join(stream.end())


def feed(stream: Masking, data: bytes) -> bytes:
    return b"".join(stream.feed(data))


@given(
    secrets=st.lists(st.lists(few, min_size=1, max_size=6).map(b"".join), min_size=1, max_size=4),
    pieces=st.lists(texts),
)
def test_pieces_make_no_difference(secrets: list[bytes], pieces: list[bytes]) -> None:
    patterns = {part for secret in secrets for part in (secret, secret.strip(), *secret.split(b"\n"))}
    wanted = [part for part in patterns if part and (len(part) >= 4 or part in {*secrets, *map(bytes.strip, secrets)})]
    expected = re.sub(b"|".join(map(re.escape, sorted(wanted, key=len, reverse=True))), b"***", b"".join(pieces))
    assert masked(secrets, pieces) == expected


def test_only_what_may_be_the_beginning_is_held_back() -> None:
    stream = Mask([b"hunter2"]).stream()
    assert feed(stream, b"the hun") == b"the "
    assert feed(stream, b"ch, hunter") == b"hunch, "
    assert feed(stream, b"2!") == b"***!"
    assert feed(stream, b"h") == b""
    assert b"".join(stream.end()) == b"h"


def test_lines_of_a_secret_are_secrets() -> None:
    key = b"-----BEGIN-----\nMIIEow\r\nabc\n-----END-----\n"
    assert masked([key], [b"x MIIEow abc -----END----- y"]) == b"x *** abc *** y"
    assert masked([key], [b"[", key, b"]"]) == b"[***]"
    assert masked([b"pw\n"], [b"the pw is pw\n"]) == b"the *** is ***"


def test_any_bytes_may_be_secret() -> None:
    every = bytes(range(256))
    assert masked([every, b".*"], [every[:100], every[100:], b".*a"]) == b"******a"
    assert masked([b""], [b"abc"]) == b"abc"


def test_a_text() -> None:
    assert Mask([b"hunter2"]).text("no hunter2 here") == "no *** here"


@given(
    secrets=st.lists(rhythms, min_size=1, max_size=6),
    parts=st.lists(st.one_of(rhythms, st.integers(0, 5)), max_size=8),
    cuts=st.lists(st.integers(0, 600)),
)
def test_long_ones_that_repeat_themselves_and_each_other(
    secrets: list[bytes], parts: list[bytes | int], cuts: list[int]
) -> None:
    """What comes nearly as a secret, again and again, is held back more than it must be; it comes out the same."""
    data = b"".join(secrets[part % len(secrets)] if isinstance(part, int) else part for part in parts)
    expected = re.sub(b"|".join(sorted(secrets, key=len, reverse=True)), b"***", data)
    borders = [0, *sorted(cuts), len(data)]
    assert masked(secrets, [data[start:end] for start, end in pairwise(borders)]) == expected


ALIKE = [b"a" * 32700 + b"b%d" % number for number in range(50)]


@pytest.mark.parametrize(
    ("secrets", "text"),
    [
        (ALIKE, b"a" * 32700 + b"c"),
        (ALIKE, b"a"),
        ([b"%03d" % number * 300 + b"b" for number in range(50)], b"000" * 299 + b"c"),
        ([b"\n".join(b"a" * 60 + b"%04d" % number for number in range(20_000))], b"a"),
        ([b"xa", b"\n".join(b"ax" * number for number in range(2, 300))], b"xa"),
        ([b"xa", b"ax" * 16_000], b"xa"),
        ([b"a"], b"a"),
    ],
    ids=["nearly", "nearly-at-the-end", "rhythms", "lines", "nested-lines", "short-and-long", "short"],
)
def test_no_secrets_hold_up_others(secrets: list[bytes], text: bytes) -> None:
    """What a job chooses as its secrets and prints: each bit comes soon, and all of a piece in bounded time."""
    stream, piece = Mask(secrets).stream(), (text * (32768 // len(text) + 1))[:32768]
    times = [time.thread_time()]
    for _ in range(4):
        for _ in stream.feed(piece):
            times.append(time.thread_time())
    assert max(after - before for before, after in pairwise(times)) < 0.05 * SLOWNESS
    assert times[-1] - times[0] < 3 * SLOWNESS


def test_a_byte_costs_about_the_same_however_long_the_secrets_are() -> None:
    def seconds(length: int) -> float:
        stream = Mask([b"a" * length + b"b%d" % number for number in range(10)]).stream()
        text = (b"a" * length + b"c") * (131072 // length)
        began = time.thread_time()
        for start in range(0, 131072, 32768):
            feed(stream, text[start : start + 32768])
        return time.thread_time() - began

    assert seconds(32_000) < 10 * seconds(1000)


def test_no_more_is_held_back_than_a_secret() -> None:
    stream, passed = Mask(ALIKE).stream(), 0
    for count in range(1, 40):
        passed += len(feed(stream, b"a" * 4000 + b"c"))
        assert count * 4001 - passed < max(map(len, ALIKE))
