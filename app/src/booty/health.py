"""`GET /health`: checks that this process can serve."""

import logging

from booty_runner.target import label_flaw
from booty_runner.verify import directory_flaw
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse

from booty.config import Settings

log = logging.getLogger(__name__)
router = APIRouter()


@router.head("/health", include_in_schema=False)
@router.get("/health")
def health(request: Request) -> JSONResponse:
    """Answer 200 with the release and the environment, or 503 with the reason why this process can't serve."""
    # request.state is empty until the lifespan's startup is complete.
    settings: Settings | None = getattr(request.state, "settings", None)
    if settings is None:
        return JSONResponse({"status": "unavailable", "reason": "the startup is not complete"}, 503)
    identity = {"release": settings.sentry_release, "environment": settings.sentry_environment}
    flaw = label_flaw() or directory_flaw(settings.state_directory)
    _log_change(request.app, flaw)
    if flaw:
        return JSONResponse({"status": "unavailable", "reason": flaw, **identity}, 503)
    return JSONResponse({"status": "ok", **identity})


def _log_change(app: FastAPI, flaw: str | None) -> None:
    """Log a flaw when it begins, changes or ends. Not before the service is ready: the runner logs why it refuses."""
    if not getattr(app.state, "started", False) or flaw == getattr(app.state, "flaw", None):
        return
    app.state.flaw = flaw
    if flaw:
        log.warning("/health answers 503: %s", flaw)
    else:
        log.info("/health answers 200 again")
