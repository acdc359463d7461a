"""A3: what cannot be told apart by its answer cannot be told apart by how long it takes either.

Two kinds of requests are asked in turn, many times, of one worker. The measure is the chance that one of the first
kind took longer than one of the second: a half when nothing can be told. With this many its standard deviation is
0.024, and a load on the machine hits both kinds alike.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from baselayer import token as tokens
from tests.attacks.tools import Belongings
from tests.client import Api, Person

SAMPLES = 300
FARTHEST = 0.14  # from a half: six times the standard deviation
_addresses = (f"203.{a}.{b}.{c}" for a in count() for b in range(256) for c in range(256))


def with_checksum(body: str) -> str:
    return body + tokens._checksum(body)


def chance_of_longer(first: list[float], second: list[float]) -> float:
    """The chance that a value of `first` is above one of `second` (the Mann-Whitney statistic as a probability)."""
    ranked = sorted([(value, True) for value in first] + [(value, False) for value in second])
    ranks = sum(rank for rank, (_, is_first) in enumerate(ranked, 1) if is_first)
    return (ranks - len(first) * (len(first) + 1) / 2) / (len(first) * len(second))


def apart(first: Callable[[], object], second: Callable[[], object]) -> float:
    """How well the times that these two take can be told apart: 0 for not at all, 0.5 for always."""
    times: tuple[list[float], list[float]] = ([], [])
    chooser = random.Random(1)
    for _ in range(SAMPLES):
        for which in chooser.sample((0, 1), 2):
            begun = time.perf_counter()
            (first, second)[which]()
            times[which].append(time.perf_counter() - begun)
    return abs(chance_of_longer(*times) - 0.5)


@pytest.fixture(scope="module")
def worker(workers: list[Api]) -> Iterator[Api]:
    """One worker, whose router we are: each request comes from an address of its own."""
    yield workers[0]


def refused(worker: Api, token: str) -> Callable[[], object]:
    def ask() -> None:
        headers = {**worker.headers(token), "X-Real-IP": next(_addresses)}
        assert worker.client.get("/api/user", headers=headers).status_code == 401

    return ask


@pytest.mark.parametrize("kind", ["nearly right", "revoked"])
def test_a_wrong_token_takes_no_longer_for_being_nearly_right(alice: Person, worker: Api, kind: str) -> None:
    good = alice.token
    if kind == "revoked":
        record = alice.api.post("/api/tokens", {"name": "lost"}).data
        alice.api.delete(f"/api/tokens/{record['id']}").data  # noqa: B018
        near = record["token"]
    else:  # all but the last that is random, and the checksum of it
        near = with_checksum(good[:-7] + ("A" if good[-7] != "A" else "B"))
    assert tokens.well_formed(near) and near != good
    far = tokens.mint()
    assert apart(refused(worker, near), refused(worker, far)) < FARTHEST


def test_another_s_job_takes_no_longer_than_one_that_is_not_there(
    bob: Person, belongings: Belongings, worker: Api
) -> None:
    def missing(job_id: str) -> Callable[[], object]:
        def ask() -> None:
            answer = worker.client.get(f"/api/jobs/{job_id}", headers=worker.headers(bob.token))
            assert answer.status_code == 404

        return ask

    theirs = belongings.things["job_id"][0]
    assert apart(missing(theirs), missing(f"private_{uuid.uuid4().hex}")) < FARTHEST
