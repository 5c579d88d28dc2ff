"""The app: `create_app` assembles it, its lifespan opens and closes its resources."""

from collections.abc import AsyncIterator, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager, closing
from functools import cache
from re import Pattern
from typing import Any, TypedDict

import booty_runner
import sentry_sdk
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from sentry_sdk.integrations.fastapi import FastApiIntegration
from sentry_sdk.integrations.starlette import StarletteIntegration
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, compile_path

import booty.jobs  # noqa: F401 - declares the jobs
from booty import __version__, health, operate, routes
from booty.config import Settings, from_environment
from booty.queue import Queue


class State(TypedDict):
    """The lifespan's state, which each request gets as `request.state`."""

    settings: Settings
    queue: Queue


def create_app(settings: Settings | None = None) -> FastAPI:
    """Create the app. It opens nothing until its lifespan starts.

    Args:
        settings: by default those of the environment.

    Raises:
        SystemExit: with status 1, if a setting is not accepted.
    """
    settings = settings or from_environment()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        _init_sentry(settings)
        booty_runner.name_requests(_route_of(app.routes), client_left=[ClientDisconnect])
        # Open further resources of the app here, or in a router's own lifespan (routes.py). Jobs run only while these
        # resources are open: from the runner's on_ready hook to the end of its drain.
        with closing(Queue(settings)) as queue:
            operate.register(queue)
            booty_runner.on_ready(lambda _: setattr(app.state, "started", True))
            yield State(settings=settings, queue=queue)

    app = FastAPI(title="Booty", version=__version__, lifespan=lifespan)
    app.include_router(health.router)
    app.include_router(routes.router)
    return app


def _init_sentry(settings: Settings) -> None:
    """Start Sentry, for errors only, if a DSN is set."""
    if settings.sentry_dsn is None:
        return
    sentry_sdk.init(
        dsn=settings.sentry_dsn.get_secret_value(),
        release=settings.sentry_release,
        environment=settings.sentry_environment,
        sample_rate=settings.sentry_sample_rate,
        ignore_errors=[ClientDisconnect],
        auto_enabling_integrations=False,
        # No HTTP method begins a transaction: without tracing it is never sent, yet takes a third of a request's time.
        integrations=[
            StarletteIntegration(http_methods_to_capture=()),
            FastApiIntegration(http_methods_to_capture=()),
        ],
        in_app_include=[__package__],
    )


def _route_of(routes: Sequence[BaseRoute]) -> Callable[[MutableMapping[str, Any]], str | None]:
    """Return a function that finds a request's full route, with the prefixes of its routers, before routing."""

    def route_of(scope: MutableMapping[str, Any]) -> str | None:
        for route in iter_route_contexts(routes):
            if route.path and scope.get("method") in (route.methods or ()) and _regex(route.path).match(scope["path"]):
                return route.path
        return None

    return route_of


@cache
def _regex(path: str) -> Pattern[str]:
    return compile_path(path)[0]
