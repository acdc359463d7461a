"""Users with their limits, as records and in the database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row, Select, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from baselayer.access import Caller
from baselayer.errors import Conflict, NotFound
from baselayer.fields import rfc3339
from baselayer.models import User
from shell_service import queue, submissions
from shell_service.access import tell_access_changed
from shell_service.models import DeferredJob, Job, ReadyJob, RunningJob, UserLimits
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
            name: getattr(defaults, name) if getattr(row, name) is None else getattr(row, name)
            for name in ("max_running", "max_queued", "jobs_per_minute")
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
    """Change a user. Deactivating one stops his tokens, and nothing of his starts any more; then `cancel_some`.

    Raises `NotFound`, and `Conflict` when administrators would lock themselves out.
    """
    user_id = session.scalar(select(User.id).where(User.username == username))
    if user_id is None:
        raise NotFound
    deactivated = changes.get("active") is False
    if user_id == caller.user_id and (deactivated or changes.get("role", caller.role) != caller.role):
        raise Conflict("You cannot deactivate yourself or change your own role; let another administrator do it.")
    values = {name: changes[name] for name in ("role", "active") if name in changes}
    submissions.lock_user(session, user_id)  # so that no submission under way slips in later
    session.execute(update(User).where(User.id == user_id).values(**values, modified=func.now()))
    _set_limits(session, user_id, changes.get("limits", {}))
    tell_access_changed(session)


def cancel_some(session: Session, username: str, by: str) -> int:
    """Cancel up to `CANCEL_AT_ONCE` jobs of a user; returns how many: none when there are no more."""
    ids = session.scalars(
        select(Job.id)
        .join(User, User.id == Job.user_id)
        .outerjoin(RunningJob, RunningJob.job_id == Job.id)
        .where(User.username == username, Job.status.is_(None), RunningJob.cancel_requested_at.is_(None))
        .limit(queue.CANCEL_AT_ONCE)
    ).all()
    queue.cancel(session, ids, by)
    return len(ids)


def cancel_of_inactive(session: Session) -> int:
    """Cancel some jobs of users who are not active; returns how many.

    There are such jobs when the worker that deactivated a user was killed before it had cancelled all.
    """
    unasked = select(RunningJob.job_id, RunningJob.user_id).where(RunningJob.cancel_requested_at.is_(None))
    places = (select(ReadyJob.job_id, ReadyJob.user_id), select(DeferredJob.job_id, DeferredJob.user_id), unasked)
    ids = [
        job_id
        for place in places
        for job_id in session.scalars(
            place.join(User, User.id == place.selected_columns.user_id).where(~User.active).limit(queue.CANCEL_AT_ONCE)
        )
    ]
    queue.cancel(session, ids, "the service")
    return len(ids)


def usage(session: Session, user_id: int) -> dict[str, int]:
    """How many jobs a user has running and queued now."""
    row = session.execute(
        text(
            "SELECT (SELECT count(*) FROM running_job WHERE user_id = :id),"
            " (SELECT count(*) FROM ready_job WHERE user_id = :id),"
            " (SELECT count(*) FROM deferred_job WHERE user_id = :id)"
        ),
        {"id": user_id},
    ).one()
    return {"running": row[0], "queued": row[1] + row[2]}
