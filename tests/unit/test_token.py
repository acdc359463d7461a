"""Tokens: their form, and that typos are caught before a database is asked."""

from __future__ import annotations

import hashlib
import math
import string

from hypothesis import given
from hypothesis import strategies as st

from baselayer import token as tokens

ALPHABET = string.digits + string.ascii_letters
minted = st.builds(tokens.mint)


def test_a_token_has_the_stated_form() -> None:
    token = tokens.mint()
    assert token.startswith("shs_")
    assert len(token) == 42
    assert set(token[4:]) <= set(ALPHABET)
    assert 32 * math.log2(len(ALPHABET)) >= 160  # bits of chance


def test_tokens_differ() -> None:
    assert len({tokens.mint() for _ in range(1000)}) == 1000


@given(minted)
def test_what_is_minted_is_well_formed(token: str) -> None:
    assert tokens.well_formed(token)


@given(minted, st.integers(0, 41), st.sampled_from(ALPHABET + "_- é\0\n"))
def test_one_wrong_character_is_noticed(token: str, place: int, character: str) -> None:
    changed = token[:place] + character + token[place + 1 :]
    assert tokens.well_formed(changed) == (changed == token)


@given(minted, st.integers(4, 40))
def test_two_swapped_characters_are_noticed(token: str, place: int) -> None:
    changed = token[:place] + token[place + 1] + token[place] + token[place + 2 :]
    assert tokens.well_formed(changed) == (changed == token)


@given(minted, st.integers(0, 41), st.text(max_size=3))
def test_a_token_cut_or_prolonged_is_noticed(token: str, place: int, more: str) -> None:
    assert not tokens.well_formed(token[:place] + token[place + 1 :])
    assert tokens.well_formed(token + more) == (not more)


@given(st.text(max_size=60))
def test_no_text_is_a_token_by_chance(text: str) -> None:
    assert not tokens.well_formed(text)


def test_what_is_stored_is_a_hash_of_the_whole() -> None:
    token = tokens.mint()
    assert tokens.digest(token) == hashlib.sha256(token.encode()).digest()
    assert tokens.digest(token) != tokens.digest(token[:-1] + ("a" if token[-1] != "a" else "b"))
    assert len(token[: tokens.SHOWN]) == 10  # of which 6 are of chance: what lists show is no help to a guesser


def test_nothing_that_may_be_a_token_is_left() -> None:
    made = tokens.mint()
    for around in ("{}", "/api/tokens/{}", "a{}b {}", "{}.stdout", "{}%20"):
        masked = tokens.masked(around.replace("{}", made))
        assert made[len(tokens.PREFIX) :][:20] not in masked
        assert "shs_***" in masked
    assert tokens.masked(f"/api/tokens/{made[:-8]}") == "/api/tokens/shs_***"
    assert tokens.masked("/api/jobs/shs_report_0") == "/api/jobs/shs_report_0"
