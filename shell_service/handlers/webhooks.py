"""Webhooks: keys that sign, and what was delivered."""

from __future__ import annotations

from typing import Any

from baselayer.errors import NotFound
from baselayer.handler import Call, Route, endpoint
from shell_service import webhook_schemas, webhooks
from shell_service.handlers.base import AppHandler


class WebhookKey(AppHandler):
    @endpoint("secrets:write", answer=webhook_schemas.KeyRecord(), action="webhook.key")
    async def post(self, call: Call) -> Any:
        """Make a key for your webhooks.

        It signs all that is delivered to your targets from now on; the one before signs as well for another day. It is
        shown in this answer only.
        """
        return await self.change(lambda _: self.entry(), webhooks.replace_key, self.app.keyring, call.caller)


class Deliveries(AppHandler):
    @endpoint("jobs:read", answer=webhook_schemas.DeliveryRecord(many=True), errors=[NotFound])
    async def get(self, call: Call, job_id: str) -> Any:
        """See what was delivered to webhooks about a job's end.

        To your own targets; administrators see all.
        """
        return await self.app.database.ask(webhooks.of_job, call.caller, job_id)


ROUTES = [
    Route("/api/webhooks/key", WebhookKey),
    Route("/api/jobs/{job_id}/deliveries", Deliveries),
]
