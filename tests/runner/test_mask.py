"""Secrets in a job's output: gone, wherever the pieces begin in which it comes."""

from __future__ import annotations

import re
import time

from hypothesis import given
from hypothesis import strategies as st

from shell_service.mask import Mask

few = st.sampled_from([b"a", b"b", b"\n"])  # so that secrets overlap, repeat and begin each other
texts = st.lists(few, max_size=30).map(b"".join)


def masked(secrets: list[bytes], pieces: list[bytes]) -> bytes:
    mask = Mask(secrets)
    return b"".join(map(mask.feed, pieces)) + mask.flush()


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
    mask = Mask([b"hunter2"])
    assert mask.feed(b"the hun") == b"the "
    assert mask.feed(b"ch, hunter") == b"hunch, "
    assert mask.feed(b"2!") == b"***!"
    assert mask.feed(b"h") == b""
    assert mask.flush() == b"h"


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


def test_no_secrets_make_it_slow_for_long() -> None:
    """What a job chooses as its secrets and prints must not hold up others: seconds for a piece are too long."""
    lines = b"\n".join(b"a" * 60 + b"%04d" % number for number in range(20_000))
    for secret, piece in ((lines, b"a" * 32768), (b"a" * 32768 + b"b", b"a" * 32768)):
        mask = Mask([secret])
        began = time.process_time()
        mask.feed(piece)
        assert time.process_time() - began < 0.5
