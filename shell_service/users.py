"""Users with their limits, as records and in the database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row, Select, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from baselayer.access import Caller
from baselayer.errors import Conflict, NotFound
from baselayer.fields import rfc3339
from baselayer.models import User
from shell_service import queue, submissions
from shell_service.access import tell_access_changed
from shell_service.models import DeferredJob, ReadyJob, RunningJob, UserLimits
from shell_service.submissions import Limits


def select_records() -> Select[*tuple[Any, ...]]:
    """Everything that a user's record is made of."""
    return select(
        User.id,
        User.username,
        User.role,
        User.active,
        User.created_at,
        User.modified,
        UserLimits.max_running,
        UserLimits.max_queued,
        UserLimits.jobs_per_minute,
    ).outerjoin(UserLimits, UserLimits.user_id == User.id)


def record(row: Row[Any], defaults: Limits) -> dict[str, Any]:
    """What the API tells of a user."""
    return {
        "id": row.id,
        "username": row.username,
        "role": row.role,
        "active": row.active,
        "created_at": rfc3339(row.created_at),
        "modified": rfc3339(row.modified),
        "limits": {
            name: default if getattr(row, name) is None else getattr(row, name)
            for name, default in vars(defaults).items()
        },
    }


def find(session: Session, username: str, defaults: Limits) -> dict[str, Any]:
    """The record of this user. Raises `NotFound`."""
    row = session.execute(select_records().where(User.username == username)).first()
    if row is None:
        raise NotFound
    return record(row, defaults)


def page(session: Session, limit: int, before: int | None, defaults: Limits) -> list[dict[str, Any]]:
    """Records of up to `limit` users, newest first, with ids below `before`."""
    statement = select_records().order_by(User.id.desc()).limit(limit)
    if before is not None:
        statement = statement.where(User.id < before)
    return [record(row, defaults) for row in session.execute(statement)]


def create(session: Session, username: str, role: str, limits: Mapping[str, int | None]) -> int:
    """Store a new user; returns his id. Raises `Conflict` when the name is taken."""
    user_id = session.scalar(
        insert(User).values(username=username, role=role).on_conflict_do_nothing().returning(User.id)
    )
    if user_id is None:
        raise Conflict(f"There is a user {username} already.", {"username": ["Taken."]})
    _set_limits(session, user_id, limits)
    return user_id


def _set_limits(session: Session, user_id: int, limits: Mapping[str, int | None]) -> None:
    if limits:
        statement = insert(UserLimits).values(user_id=user_id, **limits)
        session.execute(statement.on_conflict_do_update(index_elements=[UserLimits.user_id], set_=dict(limits)))


def change(session: Session, caller: Caller, username: str, changes: Mapping[str, Any]) -> None:
    """Change a user. Deactivating one cancels his jobs and stops his tokens.

    Raises `NotFound`, and `Conflict` when administrators would lock themselves out.
    """
    user_id = session.scalar(select(User.id).where(User.username == username))
    if user_id is None:
        raise NotFound
    deactivated = changes.get("active") is False
    if user_id == caller.user_id and (deactivated or changes.get("role", caller.role) != caller.role):
        raise Conflict("You cannot deactivate yourself or change your own role; let another administrator do it.")
    values = {name: changes[name] for name in ("role", "active") if name in changes}
    submissions.lock_user(session, user_id)  # so that no submission under way slips in behind the cancel
    session.execute(update(User).where(User.id == user_id).values(**values, modified=func.now()))
    _set_limits(session, user_id, changes.get("limits", {}))
    tell_access_changed(session)
    if deactivated:
        tables = (ReadyJob, DeferredJob, RunningJob)
        ids = [
            job_id for table in tables for job_id in session.scalars(select(table.job_id).filter_by(user_id=user_id))
        ]
        queue.cancel(session, ids, caller.username)
