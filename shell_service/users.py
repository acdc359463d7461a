"""Users with their limits, as records and in the database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row, Select, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from baselayer.access import Caller
from baselayer.errors import Conflict, InvalidRequest, NotFound
from baselayer.fields import rfc3339
from baselayer.models import User
from shell_service import queue, submissions
from shell_service.access import tell_access_changed
from shell_service.limits import shown
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
        UserLimits.defaults,
        UserLimits.maxima,
        UserLimits.network,
    ).outerjoin(UserLimits, UserLimits.user_id == User.id)


def record(row: Row[Any], defaults: Limits) -> dict[str, Any]:
    """What the API tells of a user."""
    bounds = defaults.job.with_own(row.defaults or {}, row.maxima or {})
    return {
        "id": row.id,
        "username": row.username,
        "role": row.role,
        "active": row.active,
        "created_at": rfc3339(row.created_at),
        "modified": rfc3339(row.modified),
        "limits": {
            **{name: _own(getattr(row, name), getattr(defaults, name)) for name in _BUDGETS},
            "job": {"default": dict(bounds.defaults), "max": dict(bounds.maxima)},
            "network": bool(row.network),
        },
    }


_BUDGETS = ("max_running", "max_queued", "jobs_per_minute")


def _own(value: int | None, default: int) -> int:
    return default if value is None else value


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


def count(session: Session) -> int:
    """How many users there are, active or not."""
    return session.scalar(select(func.count()).select_from(User)) or 0


def create(session: Session, username: str, role: str, *, alone: bool = False) -> int:
    """Store a new user; returns his id. Where he must be `alone`, nobody else may be there.

    Raises `Conflict` when somebody is, or the name is taken.
    """
    if alone and session.scalar(select(User.id).limit(1)) is not None:
        raise Conflict(
            "Without a sandbox (sandbox.mode is none) only one user may exist, as jobs can do all that the service can."
        )
    user_id = session.scalar(
        insert(User).values(username=username, role=role).on_conflict_do_nothing().returning(User.id)
    )
    if user_id is None:
        raise Conflict(f"There is a user {username} already.", {"username": ["Taken."]})
    return user_id


def set_limits(session: Session, user_id: int, limits: Mapping[str, Any], defaults: Limits) -> None:
    """Change those limits of a user that are named (see `user_schemas.LimitsRequest`).

    For who holds `submissions.lock_user`, or has just made the user. Raises `InvalidRequest` for limits that contradict
    each other.
    """
    if not limits:
        return
    values = {name: limits[name] for name in _BUDGETS if name in limits}
    if "network" in limits:
        values["network"] = bool(limits["network"])
    if "job" in limits:
        row = session.execute(
            select(UserLimits.defaults, UserLimits.maxima).where(UserLimits.user_id == user_id)
        ).first()
        asked = limits["job"] or {"default": None, "max": None}
        own = {"default": row.defaults if row else {}, "max": row.maxima if row else {}}
        for kind, changes in asked.items():
            merged = {} if changes is None else {**own[kind], **changes}
            own[kind] = {name: value for name, value in merged.items() if value is not None}
        _check_bounds(asked.get("default") or {}, own["max"], defaults)
        values |= {"defaults": own["default"], "maxima": own["max"]}
    statement = insert(UserLimits).values(user_id=user_id, **values)
    session.execute(statement.on_conflict_do_update(index_elements=[UserLimits.user_id], set_=values))


def _check_bounds(asked: Mapping[str, float | None], maxima: Mapping[str, float], defaults: Limits) -> None:
    """Raise `InvalidRequest` for defaults asked for that are above the maxima that will hold."""
    most = {**defaults.job.maxima, **maxima}
    errors = {
        name: [f"Must be at most the maximum, {shown(name, most[name])}."]
        for name, value in asked.items()
        if value is not None and value > most[name]
    }
    if errors:
        raise InvalidRequest.of({"limits": {"job": {"default": errors}}})


def change(session: Session, caller: Caller, username: str, changes: Mapping[str, Any], defaults: Limits) -> None:
    """Change a user. Deactivating one stops his tokens, and nothing of his starts any more; then `cancel_some`.

    Raises `NotFound`, `Conflict` when administrators would lock themselves out, and `InvalidRequest` for limits that
    contradict each other.
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
    set_limits(session, user_id, changes.get("limits", {}), defaults)
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
