"""Groups of users, which scripts can be shared with. Administrators make them; their owners manage who is in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from baselayer.access import Caller
from baselayer.errors import Conflict, InvalidRequest, NotAllowed, NotFound
from baselayer.fields import rfc3339
from baselayer.models import User
from baselayer.visibility import visible
from shell_service.models import Group, GroupMember

MAX_MEMBERS = 1000  # of a group
MAX_GROUPS = 1000


@dataclass(frozen=True)
class Found:
    """A group that its caller may see."""

    row: Row[Any]
    manages: bool

    @property
    def id(self) -> int:
        group_id: int = self.row.id
        return group_id

    def require_owner(self) -> None:
        """Raise `NotAllowed` unless its caller manages it."""
        if not self.manages:
            raise NotAllowed("Only owners of the group and administrators can change it.")


def find(session: Session, caller: Caller, name: str, lock: bool = False) -> Found:
    """A group; where it is to be changed, locked against others. Raises `NotFound`."""
    statement = select(Group).where(visible(Group, caller.viewer), Group.name == name)
    group = session.scalar(statement.with_for_update() if lock else statement)
    if group is None:
        raise NotFound
    row = session.execute(select(*Group.__table__.columns).where(Group.id == group.id)).one()
    owner = session.scalar(
        select(GroupMember.owner).where(GroupMember.group_id == group.id, GroupMember.user_id == caller.user_id)
    )
    return Found(row, caller.is_admin or bool(owner))


def id_of(session: Session, caller: Caller, name: str) -> int:
    """The number of a group that a request names. Raises `InvalidRequest`."""
    try:
        return find(session, caller, name).id
    except NotFound:
        raise InvalidRequest.of({"group": ["There is no such group, or you are not in it."]}) from None


def record(session: Session, found: Found) -> dict[str, Any]:
    """What the API tells of a group."""
    return _records(session, [found.row])[0]


def _records(session: Session, rows: list[Row[Any]]) -> list[dict[str, Any]]:
    members: dict[int, list[dict[str, Any]]] = {row.id: [] for row in rows}
    found = session.execute(
        select(GroupMember.group_id, GroupMember.owner, User.username)
        .join(User, User.id == GroupMember.user_id)
        .where(GroupMember.group_id.in_(members))
        .order_by(User.username)
    )
    for row in found:
        members[row.group_id].append({"username": row.username, "owner": row.owner})
    return [
        {
            "name": row.name,
            "description": row.description,
            "created_at": rfc3339(row.created_at),
            "modified": rfc3339(row.modified),
            "members": members[row.id],
        }
        for row in rows
    ]


def page(session: Session, caller: Caller, limit: int, before: int | None) -> tuple[list[dict[str, Any]], int | None]:
    """Up to `limit` groups that the caller may see, newest first, with ids below `before`; and where to go on."""
    statement = select(*Group.__table__.columns).where(visible(Group, caller.viewer))
    if before is not None:
        statement = statement.where(Group.id < before)
    rows = list(session.execute(statement.order_by(Group.id.desc()).limit(limit + 1)))
    return _records(session, rows[:limit]), rows[limit - 1].id if len(rows) > limit else None


def create(session: Session, caller: Caller, request: Mapping[str, Any]) -> dict[str, Any]:
    """Make a group (see `script_schemas.GroupRequest`). Raises `Conflict` where the name is taken."""
    if (session.scalar(select(func.count()).select_from(Group)) or 0) >= MAX_GROUPS:
        raise Conflict(f"There are {MAX_GROUPS} groups, and no more can be made.")
    if session.scalar(insert(Group).values(**request).on_conflict_do_nothing().returning(Group.id)) is None:
        raise Conflict(f"There is a group {request['name']} already.", {"name": ["Taken."]})
    return record(session, find(session, caller, request["name"]))


def change(session: Session, caller: Caller, name: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Change what is named (see `script_schemas.GroupPatch`). Raises `NotFound`, `NotAllowed`."""
    found = find(session, caller, name, lock=True)
    found.require_owner()
    session.execute(update(Group).where(Group.id == found.id).values(**request, modified=func.clock_timestamp()))
    return record(session, find(session, caller, name))


def remove(session: Session, caller: Caller, name: str) -> None:
    """Remove a group, and with it what was shared with it. Raises `NotFound`."""
    found = find(session, caller, name, lock=True)
    session.execute(delete(Group).where(Group.id == found.id))


def put_member(session: Session, caller: Caller, name: str, username: str, owner: bool) -> dict[str, Any]:
    """Let a user be in a group, as its `owner` or not. Raises `NotFound`, `NotAllowed`, `Conflict`."""
    found = find(session, caller, name, lock=True)
    found.require_owner()
    user_id = session.scalar(select(User.id).where(User.username == username))
    if user_id is None:
        raise NotFound
    statement = insert(GroupMember).values(group_id=found.id, user_id=user_id, owner=owner)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=[GroupMember.group_id, GroupMember.user_id], set_={"owner": owner}
        )
    )
    if (session.scalar(select(func.count()).where(GroupMember.group_id == found.id)) or 0) > MAX_MEMBERS:
        raise Conflict(f"A group may have {MAX_MEMBERS} members.")
    return record(session, found)


def remove_member(session: Session, caller: Caller, name: str, username: str) -> None:
    """Let a user be in a group no longer; each may leave by himself. Raises `NotFound`, `NotAllowed`."""
    found = find(session, caller, name, lock=True)
    if username != caller.username:
        found.require_owner()
    user_id = select(User.id).where(User.username == username).scalar_subquery()
    gone = session.execute(delete(GroupMember).where(GroupMember.group_id == found.id, GroupMember.user_id == user_id))
    if not gone.rowcount:  # type: ignore[attr-defined]
        raise NotFound
