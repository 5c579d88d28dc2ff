"""The service's own routes, and what they need while it runs: this is the file to put yours in."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, object]]:
    """Open what the routes need, a database pool say, before the first request, and close it after the last.

    What the dictionary holds is each request's `request.state`. An error in here is reported, and ends the process
    with status 3: systemd starts it again.
    """
    yield {}


router = APIRouter(lifespan=lifespan)


@router.get("/")
async def greet(request: Request) -> dict[str, str | None]:
    """Greet, and say which release does."""
    return {"message": "Hello from Booty", "release": request.state.settings.sentry_release}
