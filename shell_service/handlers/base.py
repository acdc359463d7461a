"""What the product's handlers share."""

from __future__ import annotations

import base64
import binascii
import re
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import urlencode

from sqlalchemy import Select
from sqlalchemy.orm import Session

from baselayer.errors import ApiError, InvalidRequest, NotFound
from baselayer.handler import Call, Handler
from shell_service import audit, jobs
from shell_service.audit import Entry
from shell_service.jobs import Found

if TYPE_CHECKING:
    from shell_service.app import App

P = ParamSpec("P")
R = TypeVar("R")

# Which errors the audit log tells of, by their status.
_REFUSED_READS = (401, 403, 404)
_REFUSALS = (*_REFUSED_READS, 409, 422, 429)


class AppHandler(Handler):
    """A handler that knows the application."""

    @property
    def app(self) -> App:
        return self.context  # type: ignore[return-value]

    def schema_context(self) -> Any:
        return self.app.rules

    async def find(self, call: Call, job_id: str, what: Select[*tuple[Any, ...]] = jobs.STANDING) -> Found:
        """The job of this public id, for this caller. Raises `NotFound`. `what` as in `jobs.find_many`."""
        return await self.app.database.ask(jobs.find, call.caller, job_id, what)

    def entry(self, name: object = None, detail: Mapping[str, Any] | None = None) -> Entry:
        """What the audit log is to say of this request when it has done what it asks for, to the object `name`."""
        return self._entry(None if name is None else str(name), audit.DONE, 200, detail or {})

    def _entry(self, name: str | None, outcome: str, status: int, detail: Mapping[str, Any]) -> Entry:
        caller = self.caller
        return Entry(
            action=(self.declared and self.declared.action) or audit.READ,
            object=name,
            user_id=caller.user_id if caller else None,
            username=caller.username if caller else None,
            token_id=caller.token_id if caller else None,
            address=self.request.remote_ip,
            request_id=self.request_id,
            outcome=outcome,
            status=status,
            detail=detail,
        )

    async def change(
        self,
        entry_of: Callable[[R], Entry],
        function: Callable[Concatenate[Session, P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """As `Database.run`: call a function that changes something, and write of it in the same transaction.

        `entry_of` makes the entry, with `entry`, of what the function returns.
        """

        def act(session: Session) -> R:
            result = function(session, *args, **kwargs)
            audit.write([entry_of(result)]).on(session)
            self.app.failpoints.reach("app.before_commit")
            return result

        result = await self.app.database.run(act)
        self.app.failpoints.reach("app.after_commit")
        return result

    def object_asked_for(self) -> str | None:
        """The name of what the address stands for, as the audit log has it; None: for no single one."""
        return next(iter(self.path_kwargs.values()), None)

    def refused(self, error: ApiError) -> None:
        """Let the audit log tell of what was refused to somebody: of attempts at what is not his, and of limits."""
        if self.declared is None:
            return
        counted = self.caller is None and error.status == 429  # a guess beyond the limit on them
        if not counted and error.status not in (_REFUSALS if self.declared.action else _REFUSED_READS):
            return
        name = self.object_asked_for()
        detail = {"method": self.request.method, "path": audit.clean(self.request.path)}
        entry = self._entry(None if name is None else audit.clean(name), error.code, error.status, detail)
        (self.app.refusals.count if counted else self.app.refusals.note)(entry)

    def revisions(self, call: Call) -> list[str] | None:
        """The revisions of which If-Match wants the object to be at one; None: any will do. Raises `InvalidRequest`."""
        given = call.header("If-Match")
        if given is None or given.strip() == "*":
            return None
        if not re.fullmatch(r'\s*"[^"]*"(\s*,\s*"[^"]*")*\s*', given):
            raise InvalidRequest('If-Match must hold an ETag as it was given, in quotes, such as "1".')
        return re.findall(r'"([^"]*)"', given)

    def page_wanted(self, call: Call) -> tuple[int, int | None]:
        """How many things a page may have, and below which number theirs are; None: any. Raises `InvalidRequest`."""
        cursor = decode_cursor(call.query["cursor"], 4)
        return call.query["limit"], int.from_bytes(cursor) if cursor else None

    def page_of(self, found: list[R], limit: int, number_of: Callable[[R], int]) -> list[R]:
        """A page of what was found, which is one more where there is another page: then that is said."""
        if len(found) > limit:
            self.link_next(encode_cursor(number_of(found[limit - 1]).to_bytes(4)))
        return found[:limit]

    def link_next(self, cursor: str | None) -> None:
        """Say where the next page is."""
        if cursor:
            given = {name: values[-1] for name, values in self.request.query_arguments.items()}
            query = urlencode({**given, "cursor": cursor})
            self.set_header("Link", f'<{self.app.settings.base_url}{self.request.path}?{query}>; rel="next"')


def encode_cursor(value: bytes) -> str:
    """An opaque cursor for a list."""
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def decode_cursor(text: str | None, length: int) -> bytes | None:
    """What a cursor stands for. Raises `InvalidRequest` for what is none."""
    if text is None:
        return None
    try:
        value = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        value = b""
    if len(value) != length:
        raise InvalidRequest(
            "cursor is not one that this service made; take it from the Link header of the page before.",
            {"cursor": ["Not a cursor."]},
        )
    return value


def number_of(text: str) -> int:
    """The number that is a part of an address. Raises `NotFound` for what is none, as for one that is not there."""
    if not re.fullmatch(r"\d{1,10}", text, re.ASCII) or not 0 < int(text) < 2**31:
        raise NotFound
    return int(text)


def job_cursor(text: str | None) -> uuid.UUID | None:
    """The job id that a cursor stands for."""
    value = decode_cursor(text, 16)
    return uuid.UUID(bytes=value) if value else None
