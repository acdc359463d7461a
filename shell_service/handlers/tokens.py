"""Tokens: make, list, rotate, revoke."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Row, Select, delete, func, literal, select, update
from sqlalchemy.orm import Session

from baselayer import token as tokens
from baselayer.access import EVERY_SCOPE, Caller
from baselayer.errors import InvalidRequest, NotAllowed, NotFound
from baselayer.fields import rfc3339
from baselayer.handler import Call, Route, endpoint
from baselayer.models import Token, User
from baselayer.visibility import Viewer, visible
from shell_service import schemas
from shell_service.access import tell_access_changed
from shell_service.handlers.base import AppHandler, decode_cursor, encode_cursor
from shell_service.scopes import SCOPES


class Tokens(AppHandler):
    @endpoint("tokens:write", body=schemas.TokenRequest, answer=schemas.NewTokenRecord(), errors=[NotAllowed, NotFound])
    async def post(self, call: Call) -> Any:
        """Make a token.

        The whole token is in this answer and nowhere else. It can do no more than the token that makes it, and lives
        no longer. Administrators may name another user.
        """
        expires_at = None
        longest = self.app.settings.access.token_max_age
        seconds = call.body["expires_in"] or longest or None
        if longest and seconds and seconds > longest:
            raise InvalidRequest(f"expires_in must be at most {longest} seconds here.", {"expires_in": ["Too long."]})
        if seconds:
            expires_at = datetime.now(UTC) + timedelta(seconds=seconds)
        body = call.body
        return await self.app.database.run(
            _make, call.caller, body["name"], body["scopes"], expires_at, body["username"]
        )

    @endpoint("tokens:read", query=schemas.PageQuery, answer=schemas.TokenRecord(many=True))
    async def get(self, call: Call) -> Any:
        """List tokens, newest first.

        One's own; administrators see everybody's. Secrets are never shown.
        """
        after = decode_cursor(call.query["cursor"], 4)
        limit = call.query["limit"]
        before = int.from_bytes(after) if after else None
        rows = await self.app.database.run(_list, call.caller, limit, before)
        self.link_next(encode_cursor(rows[limit - 1]["id"].to_bytes(4)) if len(rows) > limit else None)
        return rows[:limit]


class OneToken(AppHandler):
    @endpoint("tokens:write", answer=schemas.Nothing(), errors=[NotFound])
    async def delete(self, call: Call, token_id: str) -> Any:
        """Revoke a token.

        It stops working everywhere within a second, on open streams too.
        """
        await self.app.database.run(_revoke, call.caller, _number(token_id))
        return {}


class RotateToken(AppHandler):
    @endpoint(
        "tokens:write", body=schemas.RotateRequest, answer=schemas.NewTokenRecord(), errors=[NotFound, NotAllowed]
    )
    async def post(self, call: Call, token_id: str) -> Any:
        """Replace a token by a new one of the same name, scopes and expiry.

        The old one works for another `overlap` seconds.
        """
        return await self.app.database.run(_rotate, call.caller, _number(token_id), call.body["overlap"])


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise NotFound
    return int(text)


def select_records() -> Select[*tuple[Any, ...]]:
    """Everything that a token's record is made of."""
    return select(
        Token.id,
        Token.user_id,
        Token.name,
        User.username,
        User.role,
        Token.scopes,
        Token.prefix,
        Token.created_at,
        Token.expires_at,
        Token.last_used_at,
    ).join(User, User.id == Token.user_id)


def record(row: Row[Any]) -> dict[str, Any]:
    """What the API tells of a token."""
    return {
        "id": row.id,
        "name": row.name,
        "username": row.username,
        "scopes": row.scopes,
        "prefix": row.prefix,
        "created_at": rfc3339(row.created_at),
        "expires_at": rfc3339(row.expires_at),
        "last_used_at": rfc3339(row.last_used_at),
    }


def _make(
    session: Session,
    caller: Caller,
    name: str,
    scopes: Sequence[str] | None,
    expires_at: datetime | None,
    username: str | None,
) -> dict[str, Any]:
    user = session.execute(select(User.id, User.role).where(User.id == caller.user_id)).one()
    if username is not None and username != caller.username:
        if not caller.is_admin or "users:admin" not in caller.scopes:
            raise NotAllowed("Only administrators may make tokens for others.")
        other = session.execute(select(User.id, User.role).where(User.username == username)).first()
        if other is None:
            raise NotFound(f"There is no user {username}.")
        user = other
    granted = _granted(caller, scopes, user.role)
    if caller.expires_at and user.id == caller.user_id:
        expires_at = min(expires_at or caller.expires_at, caller.expires_at)
    return insert(session, user.id, name, granted, expires_at)


def _granted(caller: Caller, scopes: Sequence[str] | None, role: str) -> list[str]:
    """The scopes of a new token for a user with `role`: those asked for, if `caller` has them all himself."""
    everything = caller.scopes >= SCOPES.of_role(caller.role)
    if scopes is None:
        return [EVERY_SCOPE] if everything else sorted(caller.scopes & SCOPES.of_role(role))
    missing = set(scopes) - caller.scopes - ({EVERY_SCOPE} if everything else set())
    if missing:
        raise NotAllowed(f"Your token lacks these scopes itself: {', '.join(sorted(missing))}.")
    return sorted(set(scopes))


def insert(
    session: Session, user_id: int, name: str, scopes: Sequence[str], expires_at: datetime | None
) -> dict[str, Any]:
    """Store a new token; returns its record, with the secret."""
    text = tokens.mint()
    row = Token(
        user_id=user_id,
        name=name,
        scopes=list(scopes),
        prefix=text[: tokens.SHOWN],
        digest=tokens.digest(text),
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    stored = session.execute(select_records().where(Token.id == row.id)).one()
    return {**record(stored), "token": text}


def _viewer(caller: Caller) -> Viewer:
    """The caller as one who looks at tokens: those of others are for who manages users, with a token for that."""
    return Viewer(literal(caller.user_id), literal("users:admin" in caller.scopes))


def _list(session: Session, caller: Caller, limit: int, before: int | None) -> list[dict[str, Any]]:
    statement = select_records().where(visible(Token, _viewer(caller)))
    if before is not None:
        statement = statement.where(Token.id < before)
    return [record(row) for row in session.execute(statement.order_by(Token.id.desc()).limit(limit + 1))]


def _find(session: Session, caller: Caller, token_id: int) -> Row[Any]:
    row = session.execute(
        select_records().where(Token.id == token_id, visible(Token, _viewer(caller))).with_for_update(of=Token)
    ).first()
    if row is None:
        raise NotFound
    return row


def _revoke(session: Session, caller: Caller, token_id: int) -> None:
    row = _find(session, caller, token_id)
    session.execute(delete(Token).where(Token.id == row.id))
    tell_access_changed(session)


def _rotate(session: Session, caller: Caller, token_id: int, overlap: int) -> dict[str, Any]:
    row = _find(session, caller, token_id)
    if not SCOPES.effective(row.role, row.scopes) <= caller.scopes:
        raise NotAllowed("Your token has fewer scopes than the one that you want to rotate.")
    if (
        caller.expires_at
        and row.user_id == caller.user_id
        and not (row.expires_at and row.expires_at <= caller.expires_at)
    ):
        raise NotAllowed("Your token expires before the one that you want to rotate.")
    if overlap:
        end = func.least(Token.expires_at, func.now() + timedelta(seconds=overlap))  # least() passes over nulls
        session.execute(update(Token).where(Token.id == row.id).values(expires_at=end))
    else:
        session.execute(delete(Token).where(Token.id == row.id))
    tell_access_changed(session)
    return insert(session, row.user_id, row.name, row.scopes, row.expires_at)


ROUTES = [
    Route("/api/tokens", Tokens),
    Route("/api/tokens/{token_id}", OneToken),
    Route("/api/tokens/{token_id}/rotate", RotateToken),
]
