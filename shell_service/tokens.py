"""Tokens as records and in the database: who may make, see, replace and revoke which.

A token that has expired, or was replaced with an overlap, stays listed for `KEPT_DAYS`, so that its owner can see what
a program that fails has used and when; then the scheduler removes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Row, Select, delete, func, literal, select, update
from sqlalchemy.orm import Session

from baselayer import token
from baselayer.access import EVERY_SCOPE, Caller
from baselayer.errors import Conflict, InvalidRequest, NotAllowed, NotFound
from baselayer.fields import rfc3339
from baselayer.models import Token, User
from baselayer.visibility import Viewer, visible
from shell_service import submissions
from shell_service.access import tell_access_changed
from shell_service.scopes import SCOPES

KEPT_DAYS = 30  # that a token is listed after it has expired


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


def used_by(session: Session, caller: Caller) -> dict[str, Any] | None:
    """The record of the token that `caller` uses, unless it was revoked just now."""
    row = session.execute(select_records().where(Token.id == caller.token_id)).first()
    return record(row) if row else None


def _viewer(caller: Caller) -> Viewer:
    """The caller as one who looks at tokens: those of others are for who manages users, with a token for that."""
    return Viewer(literal(caller.user_id), literal("users:admin" in caller.scopes))


def page(session: Session, caller: Caller, limit: int, before: int | None) -> list[dict[str, Any]]:
    """Records of up to `limit` tokens that `caller` may see, newest first, with ids below `before`."""
    statement = select_records().where(visible(Token, _viewer(caller)))
    if before is not None:
        statement = statement.where(Token.id < before)
    return [record(row) for row in session.execute(statement.order_by(Token.id.desc()).limit(limit))]


def expiry(seconds: int | None, longest: int) -> datetime | None:
    """When a token ends that is to live for so many seconds; `longest` is how many are allowed, 0 for no limit.

    Raises `InvalidRequest` where that is less.
    """
    if longest and seconds and seconds > longest:
        raise InvalidRequest(f"expires_in must be at most {longest} seconds here.", {"expires_in": ["Too long."]})
    seconds = seconds or longest
    return datetime.now(UTC) + timedelta(seconds=seconds) if seconds else None


def create(
    session: Session,
    caller: Caller,
    name: str,
    scopes: Sequence[str] | None,
    expires_at: datetime | None,
    username: str | None,
    most: int,
) -> dict[str, Any]:
    """Make a token for `caller`, or as an administrator for another; returns its record, with the secret.

    Raises `NotAllowed` where it could do more than the token that makes it, `NotFound` for an unknown user, and
    `Conflict` where that user has `most` tokens.
    """
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
    _one_more(session, user.id, most)
    return insert(session, user.id, name, granted, expires_at)


def _granted(caller: Caller, scopes: Sequence[str] | None, role: str) -> list[str]:
    """The scopes of a new token for a user with `role`: those asked for, if `caller` has them all himself."""
    if scopes is None:
        return [EVERY_SCOPE] if caller.every_scope else sorted(caller.scopes & SCOPES.of_role(role))
    missing = set(scopes) - caller.scopes - ({EVERY_SCOPE} if caller.every_scope else set())
    if missing:
        raise NotAllowed(f"Your token lacks these scopes itself: {', '.join(sorted(missing))}.")
    return sorted(set(scopes))


def _one_more(session: Session, user_id: int, most: int) -> None:
    """Raises `Conflict` where a user has `most` tokens; whoever comes at the same time waits, and counts this one."""
    submissions.lock_user(session, user_id)
    if (session.scalar(select(func.count()).where(Token.user_id == user_id)) or 0) >= most:
        raise Conflict(f"A user may have {most} tokens, expired ones included; revoke one that is not needed.")


def insert(
    session: Session, user_id: int, name: str, scopes: Sequence[str], expires_at: datetime | None
) -> dict[str, Any]:
    """Store a new token; returns its record, with the secret. Nothing is checked here: see `create`."""
    text = token.mint()
    row = Token(
        user_id=user_id,
        name=name,
        scopes=list(scopes),
        prefix=text[: token.SHOWN],
        digest=token.digest(text),
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    stored = session.execute(select_records().where(Token.id == row.id)).one()
    return {**record(stored), "token": text}


def _find(session: Session, caller: Caller, token_id: int) -> Row[Any]:
    row = session.execute(
        select_records().where(Token.id == token_id, visible(Token, _viewer(caller))).with_for_update(of=Token)
    ).first()
    if row is None:
        raise NotFound
    return row


def revoke(session: Session, caller: Caller, token_id: int) -> str:
    """Remove a token: it stops working everywhere within a second. Returns whose it was. Raises `NotFound`."""
    row = _find(session, caller, token_id)
    session.execute(delete(Token).where(Token.id == row.id))
    tell_access_changed(session)
    owner: str = row.username
    return owner


def rotate(session: Session, caller: Caller, token_id: int, overlap: int, most: int) -> dict[str, Any]:
    """Replace a token by one of the same name, scopes and expiry; returns its record, with the secret.

    The old one works for another `overlap` seconds. Raises `NotFound`, `NotAllowed` where the old one could do more, or
    would live longer, than the token that replaces it, and `Conflict` where there were more than `most` with both.
    """
    row = _find(session, caller, token_id)
    more = EVERY_SCOPE in row.scopes and not caller.every_scope
    if more or not SCOPES.effective(row.role, row.scopes) <= caller.scopes:
        raise NotAllowed("Your token has fewer scopes than the one that you want to rotate.")
    if (
        caller.expires_at
        and row.user_id == caller.user_id
        and not (row.expires_at and row.expires_at <= caller.expires_at)
    ):
        raise NotAllowed("Your token expires before the one that you want to rotate.")
    if overlap:
        _one_more(session, row.user_id, most)
        end = func.least(Token.expires_at, func.now() + timedelta(seconds=overlap))  # least() passes over nulls
        session.execute(update(Token).where(Token.id == row.id).values(expires_at=end))
    else:
        session.execute(delete(Token).where(Token.id == row.id))
    tell_access_changed(session)
    return insert(session, row.user_id, row.name, row.scopes, row.expires_at)


def remove_expired(session: Session, limit: int = 1000) -> int:
    """Remove up to `limit` tokens that expired `KEPT_DAYS` ago; returns how many."""
    old = select(Token.id).where(Token.expires_at < func.now() - timedelta(days=KEPT_DAYS)).limit(limit)
    return len(session.scalars(delete(Token).where(Token.id.in_(old)).returning(Token.id)).all())
