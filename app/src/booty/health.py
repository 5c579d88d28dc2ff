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
    reason = label_flaw() or directory_flaw(settings.state_directory)
    _log_change(request.app, reason)
    if reason:
        return JSONResponse({"status": "unavailable", "reason": reason, **identity}, 503)
    return JSONResponse({"status": "ok", **identity})


def _log_change(app: FastAPI, reason: str | None) -> None:
    """Log the reason when it begins, changes or ends. Until the service is ready, the runner logs it instead."""
    if not getattr(app.state, "started", False) or reason == getattr(app.state, "reason", None):
        return
    app.state.reason = reason
    if reason:
        log.warning("/health answers 503: %s", reason)
    else:
        log.info("/health answers 200 again")
