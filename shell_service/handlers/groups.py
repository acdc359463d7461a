"""Groups: users whom scripts are shared with by one name."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from baselayer.access import Caller
from baselayer.errors import Conflict, NotAllowed, NotFound
from baselayer.handler import Call, Route, endpoint
from shell_service import groups, schemas, script_schemas
from shell_service.handlers.base import AppHandler, encode_cursor


class Groups(AppHandler):
    @endpoint(
        "users:admin",
        body=script_schemas.GroupRequest,
        answer=script_schemas.GroupRecord(),
        errors=[Conflict],
        action="group.create",
    )
    async def post(self, call: Call) -> Any:
        """Make a group.

        Nobody is in it yet; `PUT /api/groups/{group}/members/{username}` changes that.
        """
        name = call.body["name"]
        return await self.change(lambda _: self.entry(name), groups.create, call.caller, call.body)

    @endpoint("groups:read", query=schemas.PageQuery, answer=script_schemas.GroupRecord(many=True))
    async def get(self, call: Call) -> Any:
        """List groups, newest first.

        Those that one is in; administrators see all.
        """
        limit, before = self.page_wanted(call)
        records, following = await self.app.database.ask(groups.page, call.caller, limit, before)
        self.link_next(encode_cursor(following.to_bytes(4)) if following else None)
        return records


class Group(AppHandler):
    @endpoint("groups:read", answer=script_schemas.GroupRecord(), errors=[NotFound])
    async def get(self, call: Call, group: str) -> Any:
        """See a group, and who is in it."""
        return await self.app.database.ask(_see, call.caller, group)

    @endpoint(
        "groups:write",
        body=script_schemas.GroupPatch,
        answer=script_schemas.GroupRecord(),
        errors=[NotFound, NotAllowed],
        action="group.change",
    )
    async def patch(self, call: Call, group: str) -> Any:
        """Change a group.

        For its owners and administrators.
        """
        return await self.change(lambda _: self.entry(group), groups.change, call.caller, group, call.body)

    @endpoint("users:admin", answer=schemas.Nothing(), errors=[NotFound], action="group.delete")
    async def delete(self, call: Call, group: str) -> Any:
        """Delete a group.

        What was shared with it is shared with its members no longer.
        """
        await self.change(lambda _: self.entry(group), groups.remove, call.caller, group)
        return {}


class GroupMember(AppHandler):
    @endpoint(
        "groups:write",
        body=script_schemas.MemberRequest,
        answer=script_schemas.GroupRecord(),
        errors=[NotFound, NotAllowed, Conflict],
        action="group.member",
    )
    async def put(self, call: Call, group: str, username: str) -> Any:
        """Let a user be in a group.

        For its owners and administrators.
        """
        owner = call.body["owner"]
        entry = self.entry(group, {"member": username, "owner": owner})
        return await self.change(lambda _: entry, groups.put_member, call.caller, group, username, owner)

    @endpoint("groups:write", answer=schemas.Nothing(), errors=[NotFound, NotAllowed], action="group.leave")
    async def delete(self, call: Call, group: str, username: str) -> Any:
        """Let a user be in a group no longer.

        For its owners and administrators; everybody can leave a group by himself.
        """
        await self.change(
            lambda _: self.entry(group, {"member": username}), groups.remove_member, call.caller, group, username
        )
        return {}


def _see(session: Session, caller: Caller, name: str) -> dict[str, Any]:
    return groups.record(session, groups.find(session, caller, name))


ROUTES = [
    Route("/api/groups", Groups),
    Route("/api/groups/{group}", Group),
    Route("/api/groups/{group}/members/{username}", GroupMember),
]
