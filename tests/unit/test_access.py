"""Scopes, callers, the throttle of failures, and the memory of who a token belongs to."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import literal, select
from sqlalchemy.dialects import postgresql

from baselayer import token as tokens
from baselayer.access import EVERY_SCOPE, Authenticator, Caller, Throttle, network_of
from baselayer.errors import LimitReached, NotAllowed, NotAuthenticated
from baselayer.models import Base, Token, User
from baselayer.query import Query
from baselayer.visibility import Viewer, visible
from shell_service.models import Group, Job, Schedule, Script
from shell_service.scopes import MEANINGS, SCOPES

R = TypeVar("R")

scopes = st.lists(st.sampled_from([*MEANINGS, "made:up"]))


@given(st.sampled_from(["user", "admin", "nobody"]), scopes)
def test_a_token_never_does_more_than_its_owner(role: str, granted: list[str]) -> None:
    effective = SCOPES.effective(role, granted)
    assert effective <= SCOPES.of_role(role)
    assert EVERY_SCOPE not in effective
    assert effective == SCOPES.of_role(role) if EVERY_SCOPE in granted else effective <= set(granted)


@given(scopes, scopes)
def test_more_scopes_are_never_less(granted: list[str], more: list[str]) -> None:
    assert SCOPES.effective("user", granted) <= SCOPES.effective("user", [*granted, *more])


def test_only_administrators_administrate() -> None:
    assert "users:admin" in SCOPES.effective("admin", [EVERY_SCOPE])
    assert "users:admin" not in SCOPES.effective("user", [EVERY_SCOPE, "users:admin"])
    assert SCOPES.of_role("made-up") == frozenset()


def test_every_scope_has_a_meaning() -> None:
    assert SCOPES.of_role("admin") == MEANINGS.keys() - {EVERY_SCOPE}
    assert all(meaning.endswith(".") for meaning in MEANINGS.values())


def test_a_caller_must_have_the_scope() -> None:
    caller = Caller(1, "alice", "user", frozenset({"jobs:read"}), 1, None)
    caller.require("jobs:read")
    with pytest.raises(NotAllowed, match="lacks the scope jobs:write"):
        caller.require("jobs:write")
    with pytest.raises(NotAllowed, match="The role user lacks the scope users:admin"):
        replace(caller, every_scope=True).require("users:admin")


def test_a_model_without_a_rule_shows_nothing() -> None:
    viewer = Viewer(literal(1), literal(True))
    for mapper in Base.registry.mappers:
        query = select(mapper.class_).where(visible(mapper.class_, viewer))
        sql = str(query.compile(dialect=postgresql.dialect()))
        if mapper.class_ in (Job, Token, Script, Schedule):
            assert f"{mapper.class_.__tablename__}.user_id = " in sql
        elif mapper.class_ is Group:
            assert "group_member.user_id = " in sql
        else:
            assert sql.endswith("WHERE false"), mapper.class_
    assert User in {mapper.class_ for mapper in Base.registry.mappers}


# -- the throttle ----------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("baselayer.access.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_minute_s_worth_may_come_at_once(clock: Clock) -> None:
    throttle = Throttle(60)
    assert [throttle.take("a") for _ in range(60)] == [0] * 60
    assert throttle.take("a") == pytest.approx(1)
    clock.now += 0.5
    assert throttle.take("a") == pytest.approx(0.5)
    clock.now += 0.5
    assert throttle.take("a") == 0
    assert throttle.take("a") > 0


def test_asking_while_refused_does_not_prolong_it(clock: Clock) -> None:
    throttle = Throttle(6)
    for _ in range(6):
        throttle.take("a")
    for _ in range(100):
        clock.now += 0.1
        last = throttle.take("a")
    assert last == pytest.approx(0, abs=0.11)


def test_keys_are_counted_for_themselves(clock: Clock) -> None:
    throttle = Throttle(1)
    assert throttle.take("a") == 0
    assert throttle.take("b") == 0
    assert throttle.take("a") > 0


def test_a_bucket_never_holds_more_than_a_minute_s_worth(clock: Clock) -> None:
    throttle = Throttle(3)
    clock.now += 1e6
    assert [throttle.take("a") == 0 for _ in range(4)] == [True, True, True, False]
    clock.now += 1e6
    assert [throttle.take("a") == 0 for _ in range(4)] == [True, True, True, False]


def test_what_is_remembered_is_bounded_and_the_newest(clock: Clock) -> None:
    throttle = Throttle(1, max_keys=10)
    for number in range(100):
        throttle.take(str(number))
    assert len(throttle._buckets) == 10
    assert throttle.take("99") > 0
    assert throttle.take("0") == 0


@given(st.lists(st.floats(0, 30), max_size=200))
def test_never_more_than_a_minute_s_worth_and_the_refill(gaps: list[float]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        throttle = Throttle(10)
        taken = 0
        for gap in gaps:
            clock.now += gap
            taken += throttle.take("a") == 0
        assert taken <= 10 + (sum(gaps)) / 6 + 1e-6


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("", ""),
        ("unix:", "unix:"),
    ],
)
def test_what_counts_as_one_address(address: str, network: str) -> None:
    assert network_of(address) == network


# -- the authenticator, over a database that is a dict ---------------------------------------------------------------


class Rows:
    """Stands for `Database`: answers with the rows of the tokens that are asked for."""

    def __init__(self) -> None:
        self.rows: dict[bytes, tuple[Any, ...]] = {}
        self.asked = 0
        self.answer: asyncio.Event | None = None  # when to answer; at once without

    async def fetch(self, query: Query[R]) -> R:
        self.asked += 1
        found = [self.rows[digest] for digest in query.parameters["digests"] if digest in self.rows]
        if self.answer:
            await self.answer.wait()
        return query.read(found)

    def add(self, **fields: Any) -> str:
        token = tokens.mint()
        digest = tokens.digest(token)
        values = {"granted": ["*"], "expires_at": None, "role": "user", **fields}
        self.rows[digest] = (
            digest, len(self.rows) + 1, values["granted"], values["expires_at"], 7, "alice", values["role"]
        )  # fmt: skip
        return token


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def authenticator(rows: Rows) -> Authenticator:
    return Authenticator(rows, SCOPES, trust=0.8, failures_per_minute=5)  # type: ignore[arg-type]


def test_both_schemes_in_any_case(rows: Rows, authenticator: Authenticator) -> None:
    token = rows.add()

    async def main() -> None:
        for scheme in ("token", "Token", "TOKEN", "bearer", "Bearer"):
            assert (await authenticator.authenticate(f"{scheme} {token}", "a")).username == "alice"
            assert (await authenticator.authenticate(f"{scheme}   {token} ", "a")).username == "alice"

    asyncio.run(main())


@pytest.mark.parametrize("form", ["{}", "Basic {}", "token{}", "token", "", "token {}x", "token  {} {}", "token ü{}"])
def test_nothing_else_is_taken_or_looked_up(rows: Rows, authenticator: Authenticator, form: str) -> None:
    token = rows.add()
    with pytest.raises(NotAuthenticated):
        asyncio.run(authenticator.authenticate(form.format(token, token), "a"))
    assert rows.asked == 0


def test_failures_are_counted_by_address_and_a_good_token_is_never_refused(
    rows: Rows, authenticator: Authenticator
) -> None:
    token = rows.add()

    async def main() -> None:
        for number in range(5):
            with pytest.raises(NotAuthenticated):
                await authenticator.authenticate(f"token {tokens.mint()}{'x' * (number % 2)}", "a")
        for header in (f"token {tokens.mint()}", None, "", "Basic x", "token x", "Bearer y"):
            with pytest.raises(LimitReached) as caught:
                await authenticator.authenticate(header, "a")
            assert 1 <= caught.value.retry_after <= 13
        with pytest.raises(NotAuthenticated):
            await authenticator.authenticate("token x", "b")
        assert (await authenticator.authenticate(f"token {token}", "a")).user_id == 7

    asyncio.run(main())


def test_a_known_token_is_not_looked_up_again_until_trust_ends(
    rows: Rows, authenticator: Authenticator, clock: Clock
) -> None:
    token = rows.add()

    async def main() -> None:
        for _ in range(3):
            await authenticator.authenticate(f"token {token}", "a")
        assert rows.asked == 1
        rows.rows.clear()
        clock.now += 0.79
        await authenticator.authenticate(f"token {token}", "a")
        clock.now += 0.02
        with pytest.raises(NotAuthenticated):
            await authenticator.authenticate(f"token {token}", "a")

    asyncio.run(main())


def test_after_forget_everything_is_looked_up_anew(rows: Rows, authenticator: Authenticator) -> None:
    token = rows.add()

    async def main() -> None:
        await authenticator.authenticate(f"token {token}", "a")
        rows.rows.clear()
        authenticator.forget()
        with pytest.raises(NotAuthenticated):
            await authenticator.authenticate(f"token {token}", "a")

    asyncio.run(main())


def test_what_was_looked_up_before_forget_is_not_remembered_after_it(rows: Rows, authenticator: Authenticator) -> None:
    token = rows.add()

    async def main() -> None:
        rows.answer = asyncio.Event()
        looking = asyncio.create_task(authenticator.authenticate(f"token {token}", "a"))
        for _ in range(10):  # turns of the loop, until the question is asked
            await asyncio.sleep(0)
        assert rows.asked == 1
        rows.rows.clear()
        authenticator.forget()  # revoked while the answer was on its way
        rows.answer.set()
        await looking
        with pytest.raises(NotAuthenticated):
            await authenticator.authenticate(f"token {token}", "a")

    asyncio.run(main())


def test_a_token_that_expires_while_it_is_trusted_is_refused(rows: Rows, authenticator: Authenticator) -> None:
    token = rows.add(expires_at=datetime.now(UTC) - timedelta(milliseconds=1))
    with pytest.raises(NotAuthenticated):
        asyncio.run(authenticator.authenticate(f"token {token}", "a"))


def test_many_at_once_are_few_questions(rows: Rows, authenticator: Authenticator) -> None:
    every = [rows.add() for _ in range(100)]

    async def main() -> None:
        callers = await asyncio.gather(*(authenticator.authenticate(f"token {token}", "a") for token in every))
        assert [caller.token_id for caller in callers] == list(range(1, 101))

    asyncio.run(main())
    assert rows.asked <= 2
