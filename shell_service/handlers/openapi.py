"""The API document, for programs that read it."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

import orjson

from baselayer.handler import PUBLIC, STREAMED, Call, Route, endpoint
from shell_service import document
from shell_service.handlers.base import AppHandler

if TYPE_CHECKING:
    from shell_service.settings import Jobs, Limits


class OpenApi(AppHandler):
    @endpoint(PUBLIC, media="application/json")
    async def get(self, call: Call) -> Any:
        """The OpenAPI 3.1 document of this API.

        Made from the same declarations that check requests; it is not in the envelope of other answers.
        """
        settings = self.app.settings
        shells = tuple(self.app.rules.shells.items())
        self.set_header("Content-Type", "application/json")
        self.finish(await asyncio.to_thread(_rendered, settings.base_url, settings.jobs, settings.limits, shells))
        return STREAMED


@functools.lru_cache(maxsize=1)
def _rendered(server: str, jobs: Jobs, limits: Limits, shells: tuple[tuple[str, str], ...]) -> bytes:
    return orjson.dumps(document.build(server, jobs, limits, dict(shells)))


ROUTES = [Route("/api/openapi.json", OpenApi)]
