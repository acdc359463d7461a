"""The audit log, for administrators."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from baselayer.handler import Call, Route, endpoint
from shell_service import audit
from shell_service.audit import Filter, Place
from shell_service.audit_schemas import AuditQuery, AuditRecord
from shell_service.handlers.base import AppHandler, decode_cursor, encode_cursor

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class AuditLog(AppHandler):
    @endpoint("audit:read", query=AuditQuery, answer=AuditRecord(many=True))
    async def get(self, call: Call) -> Any:
        """See who did what, newest first.

        Everything that was done through the API and changed something, and what was refused; also users and tokens
        that were made on the machine itself. Nothing in it can be changed.
        """
        wanted = Filter(**{name: value for name, value in call.query.items() if name not in ("limit", "cursor")})
        limit = call.query["limit"]
        rows = await self.app.database.run(audit.page, wanted, limit + 1, _place(call.query["cursor"]))
        if len(rows) > limit:
            self.link_next(encode_cursor(_cursor(Place(rows[limit - 1].at, rows[limit - 1].id))))
        return [audit.record(row) for row in rows[:limit]]


def _cursor(place: Place) -> bytes:
    return ((place.at - _EPOCH) // _MICROSECOND).to_bytes(8) + place.id.to_bytes(8)


def _place(text: str | None) -> Place | None:
    value = decode_cursor(text, 16)
    if value is None:
        return None
    microseconds, number = int.from_bytes(value[:8]), int.from_bytes(value[8:])
    return Place(_EPOCH + min(microseconds, 2**57) * _MICROSECOND, min(number, 2**63 - 1))


ROUTES = [Route("/api/audit", AuditLog)]
