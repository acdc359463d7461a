"""Users: who I am, and what administrators do with them."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from sqlalchemy.orm import Session

from baselayer.access import Caller
from baselayer.errors import Conflict, NotFound
from baselayer.handler import ANY, Call, Route, endpoint
from baselayer.models import User
from shell_service import schemas, tokens, user_schemas, users
from shell_service.handlers.base import AppHandler
from shell_service.submissions import Limits


class Me(AppHandler):
    @endpoint(ANY, answer=user_schemas.WhoAmI())
    async def get(self, call: Call) -> Any:
        """Who I am, and what I may do with this token."""
        return await self.app.database.run(_who_am_i, call.caller, self.app.limits)


class Users(AppHandler):
    @endpoint(
        "users:admin",
        body=user_schemas.UserRequest,
        answer=user_schemas.UserRecord(),
        errors=[Conflict],
        action="user.create",
    )
    async def post(self, call: Call) -> Any:
        """Make a user.

        Then make the first token with `POST /api/tokens`, giving the `username`.
        """
        name, given = call.body["username"], {key: value for key, value in call.body.items() if key != "username"}
        alone = self.app.settings.sandbox.mode == "none"
        return await self.change(lambda _: self.entry(name, given), _create, call.body, self.app.limits, alone)

    @endpoint("users:admin", query=schemas.PageQuery, answer=user_schemas.UserRecord(many=True))
    async def get(self, call: Call) -> Any:
        """List users, newest first."""
        limit, before = self.page_wanted(call)
        records = await self.app.database.run(users.page, limit + 1, before, self.app.limits)
        return self.page_of(records, limit, itemgetter("id"))


class OneUser(AppHandler):
    @endpoint("users:admin", answer=user_schemas.UserRecord(), errors=[NotFound])
    async def get(self, call: Call, username: str) -> Any:
        """See a user."""
        return await self.app.database.run(users.find, username, self.app.limits)

    @endpoint(
        "users:admin",
        body=user_schemas.UserPatch,
        answer=user_schemas.UserRecord(),
        errors=[NotFound, Conflict],
        action="user.change",
    )
    async def patch(self, call: Call, username: str) -> Any:
        """Change a user's role or limits, or stop a user.

        Deactivating cancels the user's jobs and stops all tokens at once.
        """
        record = await self.change(
            lambda _: self.entry(username, call.body), _change, call.caller, username, call.body, self.app.limits
        )
        if call.body.get("active") is False:
            self.app.failpoints.reach("app.after_deactivation")
            while await self.app.database.ask(users.cancel_some, username, call.caller.username):
                pass
        return record


def _who_am_i(session: Session, caller: Caller, defaults: Limits) -> dict[str, Any]:
    row = session.execute(users.select_records().where(User.id == caller.user_id)).one()
    return {
        **users.record(row, defaults),
        "scopes": sorted(caller.scopes),
        "token": tokens.used_by(session, caller),
        **users.usage(session, caller.user_id),
    }


def _create(session: Session, body: dict[str, Any], defaults: Limits, alone: bool) -> dict[str, Any]:
    user_id = users.create(session, body["username"], body["role"], alone=alone)
    users.set_limits(session, user_id, body["limits"], defaults)
    return users.find(session, body["username"], defaults)


def _change(
    session: Session, caller: Caller, username: str, changes: dict[str, Any], defaults: Limits
) -> dict[str, Any]:
    users.change(session, caller, username, changes, defaults)
    return users.find(session, username, defaults)


ROUTES = [
    Route("/api/user", Me),
    Route("/api/users", Users),
    Route("/api/users/{username}", OneUser),
]
