"""The app: `create_app` puts it together, its lifespan starts and ends what it needs."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import TypedDict

import sentry_sdk
from fastapi import FastAPI

import booty.jobs  # noqa: F401 - which declares them
from booty import __version__, health, routes, telemetry
from booty.config import Settings
from booty.queue import Queue

log = logging.getLogger(__name__)


class State(TypedDict):
    """What the lifespan hands to each request, as `request.state`."""

    settings: Settings
    queue: Queue


def create_app(settings: Settings) -> FastAPI:
    """Make the app. Nothing happens until its lifespan starts.

    Raises:
        SystemExit: from the lifespan, with status 1: production without a DSN.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        _init_sentry(settings)
        # Run by an ASGI server, the middleware was built just before this; only what is built after
        # Sentry's start reports a raised HTTPException(5xx).
        app.middleware_stack = None
        try:
            # What the service needs while it runs starts around this: here, or in a router's own lifespan.
            # The server has its jobs begin once it is ready, and end while all of this still stands.
            with closing(Queue(settings)) as queue:
                yield State(settings=settings, queue=queue)
        except Exception as error:
            with sentry_sdk.new_scope() as scope:
                scope.set_transaction_name("shutdown" if getattr(app.state, "started", False) else "startup", "task")
                sentry_sdk.capture_exception(error)
            raise
        finally:
            # Blocks the loop, which has nothing else left to do, and needs no thread that may be stuck.
            telemetry.stop(getattr(app.state, "stop_by", 0.0))

    app = FastAPI(title="Booty", version=__version__, lifespan=lifespan)
    app.include_router(health.router)
    app.include_router(routes.router)
    return app


def _init_sentry(settings: Settings) -> None:
    """Start Sentry, for errors only, if there is a DSN; end the process if production has none."""
    if settings.sentry_dsn is None:
        if settings.is_production:
            log.error("SENTRY_DSN is not set, and %s does not run without it", settings.sentry_environment)
            raise SystemExit(1)
        log.info("SENTRY_DSN is not set: errors are not reported in %s", settings.sentry_environment)
        return
    telemetry.start(settings)
