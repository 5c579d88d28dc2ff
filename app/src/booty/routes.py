"""The app's routes, and the resources that they need. Put your own here."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, object]]:
    """Open the routes' resources, such as a database pool, before the first request; close them after the last.

    Each request finds the members of the yielded dictionary in `request.state`. An error here is reported and ends the
    process with status 3, so systemd starts it again.
    """
    yield {}


router = APIRouter(lifespan=lifespan)


@router.get("/")
async def greet(request: Request) -> dict[str, str | None]:
    """Return a greeting and the release."""
    return {"message": "Hello from Booty", "release": request.state.settings.sentry_release}
