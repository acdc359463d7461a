"""The API's handlers: one module a resource, each with its own list of routes."""

from __future__ import annotations

from baselayer.handler import Route
from shell_service.handlers import info, jobs, openapi, output, tokens, users

ROUTES: list[Route] = [*jobs.ROUTES, *output.ROUTES, *tokens.ROUTES, *users.ROUTES, *info.ROUTES, *openapi.ROUTES]
