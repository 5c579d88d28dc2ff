"""The internal app: what root on this host may ask, over a Unix socket that the network can't reach."""

import os
from typing import Any

from fastapi import FastAPI

from booty import telemetry
from booty.config import Settings


class DeliberateError(RuntimeError):
    """Raised on request, to prove the way of an error from a route to the tracker."""


def create_internal_app(settings: Settings) -> FastAPI:
    """Make the app behind the internal socket: `POST /raise` and `GET /status`."""
    app = FastAPI(title="Booty, internal", openapi_url=None)

    @app.post("/raise")
    async def raise_error() -> None:
        raise DeliberateError("raised on purpose through the internal socket")

    @app.get("/status")
    async def status() -> dict[str, Any]:
        return {
            "release": settings.sentry_release,
            "environment": settings.sentry_environment,
            "pid": os.getpid(),
            "telemetry": telemetry.status(),
        }

    return app
