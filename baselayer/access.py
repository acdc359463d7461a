"""Who calls, and what he may do.

Scope
    A right that a token can carry, such as ``jobs:read``. The application gives one dict of scopes with their
    meanings; ``*`` stands for every scope that the owner's role has.
Caller
    A user as seen through the token that he used: his identity, and the scopes that are left when the token's are
    cut down to what his role has now.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func, literal, or_, update
from sqlalchemy.orm import Session

from baselayer import token as tokens
from baselayer.batch import Batcher
from baselayer.database import Database
from baselayer.errors import LimitReached, NotAllowed, NotAuthenticated
from baselayer.models import Token
from baselayer.query import Query
from baselayer.visibility import Viewer
from baselayer.waiting import repeat

EVERY_SCOPE = "*"
_WRITE_USE_SECONDS = 5  # so that a busy token costs a row now and then, not one for each request


@dataclass(frozen=True)
class Caller:
    """The user behind a request, through one of his tokens.

    `every_scope` tells a token of all scopes that its owner will ever have from one that names all that he has now.
    """

    user_id: int
    username: str
    role: str
    scopes: frozenset[str]
    token_id: int
    expires_at: datetime | None
    every_scope: bool = False

    @property
    def is_admin(self) -> bool:
        return self.role == "admin"

    @property
    def viewer(self) -> Viewer:
        """The caller as the predicates of `visibility` take him."""
        return Viewer(literal(self.user_id), literal(self.is_admin))

    def require(self, scope: str) -> None:
        """Raise `NotAllowed` unless the token has `scope`."""
        if scope not in self.scopes:
            whose = f"The role {self.role} lacks" if self.every_scope else "This token lacks"
            raise NotAllowed(f"{whose} the scope {scope}.")


class Scopes:
    """The scopes of an application, and which of them each role has."""

    def __init__(self, meanings: Mapping[str, str], role_scopes: Mapping[str, frozenset[str]]) -> None:
        self.meanings = dict(meanings)
        self._roles = dict(role_scopes)

    def of_role(self, role: str) -> frozenset[str]:
        """All that a user with `role` may do; nothing for an unknown role."""
        return self._roles.get(role, frozenset())

    def effective(self, role: str, granted: Sequence[str]) -> frozenset[str]:
        """What a token with `granted` scopes may do for a user who has `role` now."""
        owned = self.of_role(role)
        return owned if EVERY_SCOPE in granted else owned & frozenset(granted)


class Throttle:
    """Counts per key in a bucket that holds one minute's worth and refills steadily; keeps the newest keys only."""

    def __init__(self, per_minute: float, max_keys: int = 10_000) -> None:
        self._size = max(1.0, per_minute)
        self._rate = per_minute / 60
        self._max_keys = max_keys
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> float:
        """Take one from `key`'s bucket; return 0, or the seconds until there is one again."""
        now = time.monotonic()
        level, at = self._buckets.pop(key, (self._size, now))
        level = min(self._size, level + (now - at) * self._rate)
        wait = 0.0 if level >= 1 else (1 - level) / self._rate
        self._buckets[key] = (level if wait else level - 1, now)
        if len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
        return wait


def network_of(address: str) -> str:
    """What counts as one address for throttling: an IPv4 address, or the /64 that an IPv6 client can choose from."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


class Authenticator:
    """Turns an Authorization header into a `Caller`.

    What is known of a token is trusted for `trust` seconds, or until `forget` is called: so a token that is revoked
    stops working everywhere within that time even if the notification of it is lost.
    """

    def __init__(
        self, database: Database, scopes: Scopes, *, trust: float, failures_per_minute: float, max_known: int = 10_000
    ) -> None:
        self._database = database
        self._scopes = scopes
        self._trust = trust
        self._max_known = max_known
        self._known: OrderedDict[bytes, tuple[float, Caller]] = OrderedDict()
        self._generation = 0
        self._failures = Throttle(failures_per_minute)
        self._lookups: Batcher[bytes, Caller | None] = Batcher(self._look_up)
        self._recent: set[bytes] = set()  # digests of tokens used since they were last looked at
        self._used: set[int] = set()

    async def authenticate(self, header: str | None, address: str) -> Caller:
        """The caller with this header value, from this peer address.

        Raises `NotAuthenticated`, or `LimitReached` instead of it when the address has failed too often. A good
        token is never refused because others at its address guessed.
        """
        caller = await self._find(header)
        if caller is not None:
            return caller
        if wait := self._failures.take(network_of(address)):
            raise LimitReached("Too many failed authentications from this address.", retry_after=int(wait) + 1)
        raise NotAuthenticated

    async def _find(self, header: str | None) -> Caller | None:
        scheme, _, text = (header or "").partition(" ")
        text = text.strip()
        if scheme.lower() not in ("token", "bearer") or not tokens.well_formed(text):
            return None
        digest = tokens.digest(text)
        now = time.monotonic()
        entry = self._known.get(digest)
        if entry and now - entry[0] < self._trust:
            caller: Caller | None = entry[1]
            self._recent.add(digest)
        else:
            generation = self._generation
            caller = await self._lookups.put(digest)
            if caller and generation == self._generation:
                self._known[digest] = (now, caller)
                self._known.move_to_end(digest)
                if len(self._known) > self._max_known:
                    self._known.popitem(last=False)
        if caller is None or (caller.expires_at and caller.expires_at <= datetime.now(UTC)):
            return None
        self._used.add(caller.token_id)
        return caller

    def forget(self) -> None:
        """Trust nothing known so far: some user or token has changed."""
        self._generation += 1
        self._known.clear()

    async def _look_up(self, digests: list[bytes]) -> list[Caller | Exception | None]:
        found = {row[0]: row for row in await self._database.fetch(_callers(digests))}
        rows = [found.get(digest) for digest in digests]
        return [
            self._caller(row) if row and hmac.compare_digest(row[0], digest) else None
            for row, digest in zip(rows, digests, strict=True)
        ]

    def _caller(self, row: tuple[Any, ...]) -> Caller:
        _, token_id, granted, expires_at, user_id, username, role = row
        scopes = self._scopes.effective(role, granted)
        return Caller(user_id, username, role, scopes, token_id, expires_at, EVERY_SCOPE in granted)

    def background(self) -> list[Coroutine[Any, Any, None]]:
        """What has to run beside `authenticate`."""
        return [self.keep_fresh(), self.note_use()]

    async def keep_fresh(self) -> None:
        """Until cancelled: look again, all at once, at the tokens used lately, before what is known of them is old.

        So a busy token costs one row of a query now and then, and its requests do not wait for it. When this fails,
        what is known grows old, and requests find out themselves.
        """
        await repeat(self._look_again, "looking again at busy tokens", longest=self._trust / 2)

    async def _look_again(self) -> None:
        await asyncio.sleep(self._trust / 2)
        recent, self._recent = list(self._recent), set()
        if recent:
            now, generation = time.monotonic(), self._generation
            for digest, caller in zip(recent, await self._look_up(recent), strict=True):
                if generation != self._generation:
                    break
                if isinstance(caller, Caller):
                    self._known[digest] = (now, caller)
                else:
                    self._known.pop(digest, None)

    async def note_use(self) -> None:
        """Every few seconds, until cancelled: write when tokens were last used, to the minute."""
        await repeat(self._write_use, "writing when tokens were used")

    async def _write_use(self) -> None:
        await asyncio.sleep(_WRITE_USE_SECONDS)
        used, self._used = self._used, set()
        if used:  # where this fails, the next use says it again
            await self._database.run(_mark_used, list(used))


def _callers(digests: list[bytes]) -> Query[list[tuple[Any, ...]]]:
    statement = (
        "SELECT t.digest, t.id, t.scopes, t.expires_at, u.id, u.username, u.role"
        ' FROM token t JOIN "user" u ON u.id = t.user_id WHERE t.digest = ANY (CAST(%(digests)s AS bytea[]))'
        " AND u.active AND (t.expires_at IS NULL OR t.expires_at > now())"
    )
    return Query(statement, {"digests": digests}, lambda rows: [(bytes(row[0]), *row[1:]) for row in rows], kept=True)


def _mark_used(session: Session, token_ids: list[int]) -> None:
    stale = or_(Token.last_used_at.is_(None), Token.last_used_at < func.now() - func.make_interval(0, 0, 0, 0, 0, 1))
    session.execute(update(Token).where(Token.id.in_(token_ids), stale).values(last_used_at=func.now()))
