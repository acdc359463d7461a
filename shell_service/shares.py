"""Shares: whom a script may be seen, run or changed by, beside its owner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from baselayer.access import Caller
from baselayer.errors import Conflict, InvalidRequest, NotFound
from baselayer.fields import rfc3339
from baselayer.models import User
from shell_service import groups
from shell_service.models import Group, ScriptShare
from shell_service.scripts import Found, Level, Name, find

MAX_SHARES = 200  # of a script


def listed(session: Session, found: Found) -> list[dict[str, Any]]:
    """Whom a script is shared with, the newest first."""
    rows = session.execute(
        select(ScriptShare.id, User.username, Group.name, ScriptShare.level, ScriptShare.created_at)
        .outerjoin(User, User.id == ScriptShare.user_id)
        .outerjoin(Group, Group.id == ScriptShare.group_id)
        .where(ScriptShare.script_id == found.id)
        .order_by(ScriptShare.id.desc())
    )
    return [
        {
            "id": row.id,
            "user": row.username,
            "group": row.name,
            "level": row.level,
            "created_at": rfc3339(row.created_at),
        }
        for row in rows
    ]


def share(session: Session, caller: Caller, name: Name, request: Mapping[str, Any]) -> dict[str, Any]:
    """Share a script with a user or a group (see `script_schemas.ShareRequest`), or share it otherwise than before.

    Raises what `find` raises, `InvalidRequest` where there is no such user or group, and `Conflict` where it is shared
    too often.
    """
    found = find(session, caller, name, Level.OWN, lock=True)
    whom: dict[str, int]
    if request["user"] is not None:
        user_id = session.scalar(select(User.id).where(User.username == request["user"], User.active))
        if user_id is None or user_id == found.row.user_id:
            problem = "There is no such user." if user_id is None else "The script is his own."
            raise InvalidRequest.of({"user": [problem]})
        whom = {"user_id": user_id}
    else:
        whom = {"group_id": groups.id_of(session, caller, request["group"])}
    statement = insert(ScriptShare).values(script_id=found.id, level=request["level"], **whom)
    share_id = session.scalar(
        statement.on_conflict_do_update(
            index_elements=["script_id", *whom], set_={"level": request["level"]}
        ).returning(ScriptShare.id)
    )
    now = listed(session, found)
    if len(now) > MAX_SHARES:
        raise Conflict(f"A script may be shared {MAX_SHARES} times; a group stands for many users.")
    return next(item for item in now if item["id"] == share_id)


def unshare(session: Session, caller: Caller, name: Name, share_id: int) -> dict[str, Any]:
    """Take back a share; returns it as it was. Raises what `find` raises, and `NotFound` where it is not there."""
    found = find(session, caller, name, Level.OWN, lock=True)
    for item in listed(session, found):
        if item["id"] == share_id:
            session.execute(delete(ScriptShare).where(ScriptShare.id == share_id))
            return item
    raise NotFound
