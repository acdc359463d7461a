"""A25: a place in a stream (`Last-Event-ID`) that is no number, out of range, or another job's."""

from __future__ import annotations

import pytest

from tests.attacks.tools import Belongings, Wire
from tests.client import Person, check, events

PLACES = [
    *("x", "-1-0-0", "1-0", "1--1-0", "2-0-0", "1-5-0", "1-0-1", "99999-0-0", "1-999999999999999-0", "1-0-0-0"),
    *("1-9999999999999999-0", "1 0 0", "0x1-0-0", "1e3-0-0", "+1-0-0", "\u0661-0-0", "1-0-0;", "1-\u00b2-0"),
    *("9" * 5000, "-" * 5000, "NaN", "null", "1-0-0'--", "../1-0-0"),
]


@pytest.fixture(scope="module")
def job(alice: Person) -> str:
    """A job that printed four bytes."""
    return str(alice.api.submit("printf 1234", wait=30)["id"])


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ascii(place)[:30])
def test_no_places(wire: Wire, alice: Person, job: str, place: str) -> None:
    reply = wire.ask("GET", f"/api/jobs/{job}/stream", f"Last-Event-ID: {place}", token=alice.token)
    assert reply.status == 400
    assert b"Last-Event-ID" in reply.body


@pytest.mark.parametrize("place", ["", "0-0-0", "0-1-0", "1-0-0"])
def test_places_at_the_start(alice: Person, job: str, place: str) -> None:
    """Before the first attempt nothing was printed: from the start."""
    assert [event.data for event in events(alice.api, job, place) if event.kind == "stdout"] == ["1234"]


def test_a_place_of_another_job_shows_nothing_of_it(
    alice: Person, bob: Person, belongings: Belongings, job: str
) -> None:
    """Behind its end the place is refused; within, it is one in the job that is asked for."""
    theirs = belongings.things["job_id"][0]
    mine = bob.api.submit("printf mine", wait=30)
    for event in events(alice.api, theirs):
        headers = {**bob.api.headers(), "Last-Event-ID": event.id}
        response = bob.api.client.get(f"/api/jobs/{mine['id']}/stream", headers=headers)
        assert check(response).status == 400
        assert not [mark for mark in belongings.private if mark in response.text]
        response = bob.api.client.get(f"/api/jobs/{theirs}/stream", headers=headers)
        assert check(response).status == 404
