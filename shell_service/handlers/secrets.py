"""Secrets: store, list, delete; nobody is shown a value."""

from __future__ import annotations

import re
from operator import attrgetter
from typing import Any

from baselayer.errors import Conflict, InvalidRequest, NotFound
from baselayer.handler import Call, Route, endpoint
from shell_service import schemas, secrets, user_schemas
from shell_service.handlers.base import AppHandler


class Secrets(AppHandler):
    @endpoint("secrets:read", query=schemas.PageQuery, answer=user_schemas.SecretRecord(many=True))
    async def get(self, call: Call) -> Any:
        """List secrets, newest first.

        One's own, and their names only; administrators have no other list.
        """
        limit, before = self.page_wanted(call)
        rows = await self.app.database.ask(secrets.page, call.caller, limit + 1, before)
        return [secrets.record(row) for row in self.page_of(rows, limit, attrgetter("id"))]


class OneSecret(AppHandler):
    @endpoint("secrets:read", answer=user_schemas.SecretRecord(), errors=[NotFound])
    async def get(self, call: Call, name: str) -> Any:
        """See that a secret is there, and since when.

        Its value is never shown.
        """
        return await self.app.database.ask(secrets.find, call.caller, _name(name))

    @endpoint(
        "secrets:write",
        body=user_schemas.SecretRequest,
        answer=user_schemas.SecretRecord(),
        errors=[NotFound, Conflict],
        action="secret.put",
    )
    async def put(self, call: Call, name: str) -> Any:
        """Store a secret, or give it another value.

        Names are those of environment variables. Jobs that name the secret find the value in
        `/run/job/secrets`, from the next that starts on; what they print of it is replaced by `***`.
        """
        if not re.fullmatch(schemas.VARIABLE, name, re.ASCII):
            raise InvalidRequest(f"No name for a secret: {name[:100]!a}. Names are those of environment variables.")
        most = self.app.settings.users.max_secrets
        put, keyring = secrets.put, self.app.keyring
        return await self.change(lambda _: self.entry(name), put, keyring, call.caller, name, call.body["value"], most)

    @endpoint("secrets:write", answer=schemas.Nothing(), errors=[NotFound], action="secret.delete")
    async def delete(self, call: Call, name: str) -> Any:
        """Delete a secret.

        A job that names it and has not started yet ends FAILED when its turn comes.
        """
        name = _name(name)
        await self.change(lambda _: self.entry(name), secrets.remove, call.caller, name)
        return {}


def _name(text: str) -> str:
    if not re.fullmatch(schemas.VARIABLE, text, re.ASCII):
        raise NotFound
    return text


ROUTES = [
    Route("/api/secrets", Secrets),
    Route("/api/secrets/{name}", OneSecret),
]
