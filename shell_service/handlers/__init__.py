"""The API's handlers: one module a resource, each with its own list of routes."""

from __future__ import annotations

from baselayer.handler import Route
from shell_service.handlers import (
    audit,
    groups,
    info,
    jobs,
    openapi,
    output,
    runs,
    schedules,
    scripts,
    secrets,
    tokens,
    users,
    webhooks,
)

_MODULES = (jobs, output, scripts, runs, schedules, groups, webhooks, secrets, tokens, users, audit, info, openapi)
ROUTES: list[Route] = [*(route for module in _MODULES for route in module.ROUTES), *scripts.LAST_ROUTES]
