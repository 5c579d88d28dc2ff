"""The app: `create_app` puts it together, its lifespan starts and ends what it needs."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypedDict, cast

import sentry_sdk
from fastapi import FastAPI
from sentry_sdk.integrations.argv import ArgvIntegration
from sentry_sdk.integrations.fastapi import FastApiIntegration
from sentry_sdk.integrations.starlette import StarletteIntegration
from sentry_sdk.types import Event, Hint

from booty import __version__, health, routes
from booty.config import Settings

log = logging.getLogger(__name__)

# Events still queued at the end get this long; a tracker that hangs must not hold up a stop.
FLUSH_SECONDS = 2.0


class State(TypedDict):
    """What the lifespan hands to each request, as `request.state`."""

    settings: Settings


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
            # What the service needs while it runs (a job queue, a database pool) starts here.
            yield State(settings=settings)
        except Exception as error:
            sentry_sdk.capture_exception(error)
            raise
        finally:
            # Blocks the loop, which has nothing else left to do, and needs no thread that may be stuck.
            _close_sentry()

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
    sentry_sdk.init(
        dsn=settings.sentry_dsn.get_secret_value(),
        # None would let the SDK guess one from git or CI variables; before_send drops the empty one.
        release=settings.sentry_release or "",
        environment=settings.sentry_environment,
        sample_rate=settings.sentry_sample_rate,
        before_send=before_send,
        integrations=[StarletteIntegration(), FastApiIntegration()],
        auto_enabling_integrations=False,
        auto_session_tracking=False,
        # What should not leave: locals hold settings, argv and bodies anything, and the trace headers
        # would carry the DSN's public key to every host that the service calls.
        include_local_variables=False,
        max_request_body_size="never",
        disabled_integrations=[ArgvIntegration],
        trace_propagation_targets=[],
    )


def before_send(event: Event, hint: Hint) -> Event | None:
    """Return the event as it is sent: an unknown release is left out."""
    return event if event.get("release") else cast(Event, {k: v for k, v in event.items() if k != "release"})


def _close_sentry() -> None:
    """Send what is queued, for at most `FLUSH_SECONDS`, and unbind the client from the process."""
    sentry_sdk.get_client().close(timeout=FLUSH_SECONDS)
    sentry_sdk.get_global_scope().set_client(None)
