"""The gate: proves, before a release serves, that the tracker accepts what the app's own client sends."""

import asyncio
import logging
import uuid
from contextlib import suppress
from typing import Any

from booty_runner import telemetry
from booty_runner.clients import Options
from booty_runner.deliveries import accepted
from booty_runner.settings import current
from booty_runner.transport import Watch

log = logging.getLogger(__name__)

# The tracker must accept the gate's event within this time.
GATE_SECONDS = 5.0
# The options by which an app drops events; each is lifted for the gate's event.
_LIFTED = {"sample_rate": 1.0, "error_sampler": None, "before_send": None}
_SWITCH = "; set app_telemetry_gate: false if that is meant"


async def gate_flaw() -> str | None:
    """Send one event with the client in force, and return why no error would be reported, or None.

    The tracker must accept the event within `GATE_SECONDS`. The app must not drop all errors by itself.
    """
    client, watch = telemetry.in_force(), telemetry.watch()
    if watch is None or not watch.traceable:
        return _client_flaw(client, watch)
    event_id = uuid.uuid4().hex
    outcome = watch.outcome_of(event_id)
    watch.proof = event_id
    if _capture(client, event_id) is None:
        return f"{_name(client)} drops the gate's event, so no error would be reported{_SWITCH}"
    try:
        result = await asyncio.wait_for(asyncio.wrap_future(outcome), GATE_SECONDS)
    except TimeoutError:
        result = f"no answer within {GATE_SECONDS:g} s"
    if not accepted(result):
        hint = watch.hint if isinstance(result, str) and "certificate" not in result else ""
        return f"{watch.deliveries.describe(result)}{hint}"
    if flaw := telemetry.framework_flaw():
        return flaw
    option = _dropping(client.options)
    return f"{_name(client)} drops every error by its {option}{_SWITCH}" if option else None


def _name(client: Any) -> str:
    return f"the app's Sentry client (made in {client.options.place})" if client.options.place else "Sentry's client"


def _client_flaw(client: Any, watch: Watch | None) -> str:
    """Return why the outcome of an event can't be seen."""
    if client is None:
        if current().sentry_dsn is None:
            return "SENTRY_DSN is not set, so no error would be reported"
        return f"the app has taken Sentry's client away, so no error would be reported{_SWITCH}"
    if watch is None:
        return f"{_name(client)} has no DSN, so no error would be reported: set SENTRY_DSN"
    return (
        f"{_name(client)} has a transport of its own, so nobody can see whether errors arrive: leave out"
        f" `transport`{_SWITCH}"
    )


def _capture(client: Any, event_id: str) -> str | None:
    """Capture the gate's event, with the app's own filters lifted meanwhile, and return its id or None."""
    kept = {name: client.options[name] for name in _LIFTED if name in client.options}
    client.options.update({name: _LIFTED[name] for name in kept})
    try:
        captured: str | None = client.capture_event(
            {
                "event_id": event_id,
                "level": "info",
                "logger": "booty_runner.telemetry",
                "message": "Booty release is being proven",
                "transaction": "gate",
                "fingerprint": ["booty-telemetry-gate"],
            }
        )
    finally:
        client.options.update(kept)
    return captured


def sampled(client: Any) -> float | None:
    """Return the share of ordinary errors that a client reports; None without a client."""
    if client is None:
        return None
    options, (event, hint) = client.options, _ordinary()
    if callable(sampler := options.get("error_sampler")):
        with suppress(Exception):  # the SDK reports the error then
            return float(sampler(event, hint))
    return float(options["sample_rate"])


def _ordinary() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the event and the hint of an ordinary error, for the app's filters."""
    error = RuntimeError("Booty asks whether the app's filters let an error pass")
    event = {
        "event_id": uuid.uuid4().hex,
        "level": "error",
        "exception": {"values": [{"type": "RuntimeError", "value": str(error), "module": "builtins"}]},
    }
    return event, {"exc_info": (RuntimeError, error, None)}


def _dropping(options: Options) -> str | None:
    """Return the option by which the app drops an ordinary error, or None."""
    event, hint = _ordinary()
    sampler, before_send = options.get("error_sampler"), options.before_send
    try:
        if callable(sampler) and not sampler(event, hint):
            return "error_sampler"
        if not sampler and not options["sample_rate"]:
            return "sample_rate of 0"
        return "before_send" if before_send and before_send(event, hint) is None else None
    except Exception as error_of_app:
        log.warning("the app's filter of Sentry's events fails with %r", error_of_app)
        return None
