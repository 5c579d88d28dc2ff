"""The app: `create_app` puts it together, its lifespan starts and ends what it needs."""

import logging
from collections.abc import AsyncIterator, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager, closing
from functools import cache
from re import Pattern
from typing import Any, TypedDict

import booty_runner
import sentry_sdk
from booty_runner import telemetry
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from sentry_sdk.integrations.fastapi import FastApiIntegration
from sentry_sdk.integrations.starlette import StarletteIntegration
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, compile_path

import booty.jobs  # noqa: F401 - which declares them
from booty import __version__, health, operate, routes
from booty.config import Settings, from_environment
from booty.queue import Queue

log = logging.getLogger(__name__)


class State(TypedDict):
    """What the lifespan hands to each request, as `request.state`."""

    settings: Settings
    queue: Queue


def create_app(settings: Settings | None = None) -> FastAPI:
    """Make the app. Nothing happens until its lifespan starts.

    Args:
        settings: by default those of the environment.

    Raises:
        SystemExit: with status 1, for a bad setting; from the lifespan, for production without a DSN.
    """
    settings = settings or from_environment()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        _init_sentry(settings)
        # The middleware was built for the lifespan itself; only what is built after Sentry's start reports a raised
        # HTTPException(5xx).
        app.middleware_stack = None
        booty_runner.name_requests(_route_of(app.routes), client_left=[ClientDisconnect])
        try:
            # What the service needs while it runs starts around this: here, or in a router's own lifespan.
            # The queue's jobs begin once the runner serves, and end while all of this still stands.
            with closing(Queue(settings)) as queue:
                operate.register(queue)
                booty_runner.on_ready(lambda _: setattr(app.state, "started", True))
                yield State(settings=settings, queue=queue)
        except Exception as error:
            with sentry_sdk.new_scope() as scope:
                scope.set_transaction_name("shutdown" if getattr(app.state, "started", False) else "startup", "task")
                sentry_sdk.capture_exception(error)
            raise
        finally:
            telemetry.stop()

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
    labels = (settings.sentry_release, settings.sentry_environment)
    sentry_sdk.init(
        **telemetry.options(settings.sentry_dsn.get_secret_value(), *labels, settings.sentry_sample_rate),
        ignore_errors=[ClientDisconnect],
        # No method begins a transaction: only with tracing would it be sent, and it costs a third of a request.
        integrations=[
            StarletteIntegration(http_methods_to_capture=()),
            FastApiIntegration(http_methods_to_capture=()),
        ],
        in_app_include=[__package__],
    )


def _route_of(routes: Sequence[BaseRoute]) -> Callable[[MutableMapping[str, Any]], str | None]:
    """Return what finds the route of a request, with the prefixes of its routers, also before the router has."""

    def route_of(scope: MutableMapping[str, Any]) -> str | None:
        for route in iter_route_contexts(routes):
            if route.path and scope["method"] in (route.methods or ()) and _regex(route.path).match(scope["path"]):
                return route.path
        return None

    return route_of


@cache
def _regex(path: str) -> Pattern[str]:
    return compile_path(path)[0]
