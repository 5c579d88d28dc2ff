"""`GET /health`: whether this process can serve, proven rather than claimed."""

import tempfile
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from booty.config import Settings

router = APIRouter()


@router.get("/health")
def health(request: Request) -> JSONResponse:
    """Answer 200 with the release and environment, or 503 with the reason why this process can't serve."""
    # The lifespan hands its state to each request only once the startup is complete.
    settings: Settings | None = getattr(request.state, "settings", None)
    if settings is None:
        return JSONResponse({"status": "unavailable", "reason": "the startup is not complete"}, 503)
    identity = {"release": settings.sentry_release, "environment": settings.sentry_environment}
    if flaw := settings.label_flaw or directory_flaw(settings.state_directory):
        return JSONResponse({"status": "unavailable", "reason": flaw, **identity}, 503)
    return JSONResponse({"status": "ok", **identity})


def directory_flaw(directory: Path | None) -> str | None:
    """Say why the state directory can't be written, or None: a byte in a file without a name proves it."""
    if directory is None:
        return None
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            file.write(b".")
    except OSError as error:
        return f"{directory} is not writable: {error.strerror}"
    return None
