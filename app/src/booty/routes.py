"""The service's own routes: this is the file to put yours in."""

from fastapi import APIRouter, Request

router = APIRouter()


@router.get("/")
async def greet(request: Request) -> dict[str, str | None]:
    """Greet, and say which release does."""
    return {"message": "Hello from Booty", "release": request.state.settings.sentry_release}
