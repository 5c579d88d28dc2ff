"""The internal app: what root on this host may ask, over a Unix socket that the network can't reach."""

import os
from typing import Any

from fastapi import FastAPI, HTTPException, Request

from booty import telemetry, verify
from booty.config import Settings
from booty.queue import in_thread
from booty.store import Store, StoreError


class DeliberateError(RuntimeError):
    """Raised on request, to prove the way of an error from a route to the tracker."""


def create_internal_app(settings: Settings) -> FastAPI:
    """Make the app behind the internal socket: raise an error, tell the status, verify, and see to jobs."""
    app = FastAPI(title="Booty, internal", openapi_url=None)

    @app.post("/raise")
    async def raise_error() -> None:
        raise DeliberateError("raised on purpose through the internal socket")

    @app.get("/status")
    async def status(request: Request) -> dict[str, Any]:
        try:
            jobs: dict[str, Any] = await in_thread(request.state.queue.store.counts)
        except StoreError as error:
            jobs = {"error": str(error)}
        return {
            "release": settings.sentry_release,
            "environment": settings.sentry_environment,
            "pid": os.getpid(),
            "telemetry": telemetry.status(),
            "jobs": jobs,
        }

    @app.post("/verify")
    async def verify_all(request: Request) -> dict[str, Any]:
        return (await verify.verify(settings, request.state.queue, ask_tracker=True)).json

    # Not async: these wait for the store in a thread.
    @app.get("/jobs")
    def jobs(request: Request) -> dict[str, Any]:
        return {"jobs": _store(request).jobs()}

    @app.post("/jobs/{identity}/retry")
    def retry(request: Request, identity: str) -> dict[str, str]:
        return _known(_store(request).retry(identity), identity)

    @app.delete("/jobs/{identity}")
    def drop(request: Request, identity: str) -> dict[str, str]:
        return _known(_store(request).drop(identity), identity)

    return app


def _store(request: Request) -> Store:
    try:
        store: Store = request.state.queue.store
    except StoreError as error:
        raise HTTPException(404, str(error)) from error
    return store


def _known(known: bool, identity: str) -> dict[str, str]:
    if not known:
        raise HTTPException(404, f"no job {identity} has failed")
    return {"id": identity}
