"""A2: guessing tokens: counted by address, on every route, and never to the harm of who has a good one."""

from __future__ import annotations

from baselayer import token as tokens
from tests.attacks.tools import PROTECTED, Belongings
from tests.client import Answer, Api, Person, new_address
from tests.stack import Stack


def guesses(api: Api, count: int, **options: dict[str, str]) -> list[Answer]:
    """So many requests, each with a token that is well formed and nobody's."""
    return [api.get("/api/user", token=tokens.mint(), **options) for _ in range(count)]


def test_guesses_are_throttled_by_address(stack: Stack, alice: Person) -> None:
    most = stack.settings.access.failures_per_minute
    with Api(stack.base_url, address=new_address()) as api:
        answers = guesses(api, 3 * most)
        statuses = [answer.status for answer in answers]
        assert set(statuses) == {401, 429}
        assert statuses[0] == 401
        assert statuses.count(401) <= most + 5  # one a second comes back meanwhile, per worker
        assert statuses[-5:] == [429] * 5
        assert answers[-1].code == "limit_reached"
        assert "address" in answers[-1].body["message"]
        # Whatever the header looks like, and whatever the client says of where it comes from.
        for headers in (
            {}, {"Authorization": "x"}, {"Authorization": "Bearer shs_x"}, {"Authorization": "Basic eDp5"},
            {"X-Forwarded-For": "203.0.113.1"}, {"X-Real-IP": "203.0.113.2"}, {"Forwarded": "for=203.0.113.3"},
            {"X-Forwarded-For": "127.0.0.1"}, {"X-Client-IP": "203.0.113.4"}, {"User-Agent": "other"},
        ):  # fmt: skip
            answers = [api.get("/api/user", headers=headers) for _ in range(6)]
            assert 429 in {answer.status for answer in answers}, headers
            assert {answer.status for answer in answers} <= {401, 429}
        # A good token works from there as before, and so do others from elsewhere.
        for _ in range(20):
            assert api.get("/api/user", token=alice.token).status == 200
        assert api.post("/api/jobs", {"code": "true"}, token=alice.token).status == 200
        assert api.get("/api/sysinfo").status == 200
    with Api(stack.base_url, address=new_address()) as other:
        assert other.get("/api/user").status == 401


def test_a_good_token_between_guesses_does_not_forgive_them(stack: Stack, alice: Person) -> None:
    most = stack.settings.access.failures_per_minute
    with Api(stack.base_url, address=new_address()) as api:
        for _ in range(most + 20):
            api.get("/api/user", token=alice.token)
            last = api.get("/api/user")
        assert last.status == 429


def test_every_route_counts(stack: Stack, belongings: Belongings) -> None:
    """From an address that has used up its attempts, whichever route it tries."""
    with Api(stack.base_url, address=new_address()) as api:
        guesses(api, 2 * stack.settings.access.failures_per_minute)
        for operation in PROTECTED:
            # One attempt a second comes back: a route that counts takes it, and refuses the next.
            statuses = [operation.ask(api, **next(belongings.of(operation))).status for _ in range(4)]
            assert 429 in statuses and set(statuses) <= {401, 429}, operation
