"""What the product's handlers share."""

from __future__ import annotations

import base64
import binascii
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from sqlalchemy import Select

from baselayer.errors import InvalidRequest
from baselayer.handler import Call, Handler
from shell_service import jobs
from shell_service.jobs import Found

if TYPE_CHECKING:
    from shell_service.app import App


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


def job_cursor(text: str | None) -> uuid.UUID | None:
    """The job id that a cursor stands for."""
    value = decode_cursor(text, 16)
    return uuid.UUID(bytes=value) if value else None
