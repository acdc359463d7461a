"""Tokens: make, list, rotate, revoke."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

from baselayer.errors import Conflict, NotAllowed, NotFound
from baselayer.handler import Call, Route, endpoint
from shell_service import schemas, tokens, user_schemas
from shell_service.audit import Entry
from shell_service.handlers.base import AppHandler, number_of


class Tokens(AppHandler):
    @endpoint(
        "tokens:write",
        body=user_schemas.TokenRequest,
        answer=user_schemas.NewTokenRecord(),
        errors=[NotAllowed, NotFound, Conflict],
        action="token.create",
    )
    async def post(self, call: Call) -> Any:
        """Make a token.

        The whole token is in this answer and nowhere else. It can do no more than the token that makes it, and lives
        no longer. Administrators may name another user.
        """
        body = call.body
        settings = self.app.settings
        expires_at = tokens.expiry(body["expires_in"], settings.access.token_max_age)
        wish = (body["name"], body["scopes"], expires_at, body["username"])
        return await self.change(self._entry_of_new, tokens.create, call.caller, *wish, settings.users.max_tokens)

    def _entry_of_new(self, made: dict[str, Any]) -> Entry:
        return self.entry(made["id"], {name: made[name] for name in ("username", "scopes", "expires_at")})

    @endpoint("tokens:read", query=schemas.PageQuery, answer=user_schemas.TokenRecord(many=True))
    async def get(self, call: Call) -> Any:
        """List tokens, newest first.

        One's own; administrators see everybody's. Secrets are never shown. A token that has expired is listed for
        another 30 days.
        """
        limit, before = self.page_wanted(call)
        records = await self.app.database.run(tokens.page, call.caller, limit + 1, before)
        return self.page_of(records, limit, itemgetter("id"))


class OneToken(AppHandler):
    @endpoint("tokens:write", answer=schemas.Nothing(), errors=[NotFound], action="token.revoke")
    async def delete(self, call: Call, token_id: str) -> Any:
        """Revoke a token.

        It stops working everywhere within a second, on open streams too.
        """
        number = number_of(token_id)
        await self.change(lambda owner: self.entry(number, {"username": owner}), tokens.revoke, call.caller, number)
        return {}


class RotateToken(AppHandler):
    @endpoint(
        "tokens:write",
        body=user_schemas.RotateRequest,
        answer=user_schemas.NewTokenRecord(),
        errors=[NotFound, NotAllowed, Conflict],
        action="token.rotate",
    )
    async def post(self, call: Call, token_id: str) -> Any:
        """Replace a token by a new one of the same name, scopes and expiry.

        The old one works for another `overlap` seconds.
        """
        number, overlap = number_of(token_id), call.body["overlap"]

        def entry_of(made: dict[str, Any]) -> Entry:
            return self.entry(number, {"username": made["username"], "token": made["id"], "overlap": overlap})

        most = self.app.settings.users.max_tokens
        return await self.change(entry_of, tokens.rotate, call.caller, number, overlap, most)


ROUTES = [
    Route("/api/tokens", Tokens),
    Route("/api/tokens/{token_id}", OneToken),
    Route("/api/tokens/{token_id}/rotate", RotateToken),
]
