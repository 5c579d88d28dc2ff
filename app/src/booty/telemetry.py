"""Telemetry: what leaves for the tracker, whether it arrives, and the proof that it does."""

import asyncio
import linecache
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any, cast
from urllib.parse import urlsplit

import sentry_sdk
import urllib3
from sentry_sdk.consts import EndpointType
from sentry_sdk.envelope import Envelope
from sentry_sdk.integrations.argv import ArgvIntegration
from sentry_sdk.integrations.fastapi import FastApiIntegration
from sentry_sdk.integrations.starlette import StarletteIntegration
from sentry_sdk.scrubber import EventScrubber
from sentry_sdk.transport import HttpTransport
from sentry_sdk.types import Breadcrumb, BreadcrumbHint, Event
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from booty import redact
from booty.config import Settings
from booty.logs import request_id
from booty.redact import Redactor

log = logging.getLogger(__name__)

# Events still queued at the end get this long; a tracker that hangs must not hold up a stop.
FLUSH_SECONDS = 1.5
# How long the tracker may take to accept the event that proves a release.
GATE_SECONDS = 5.0
# At most one line a minute says that events are being dropped, however often that begins anew.
QUIET_SECONDS = 60.0

# What became of an event: the HTTP status that the tracker answered with, or in words why there is none.
Outcome = int | str

# Not touched by redaction: a secret that happens to be part of an id or a label would break what the tracker needs.
_LABELS = frozenset(
    (
        "event_id",
        "release",
        "environment",
        "timestamp",
        "level",
        "platform",
        "sdk",
        "modules",
        "contexts",
        "server_name",
    )
)
_CONTEXTS = ("trace", "runtime")
_PROTOCOL = frozenset(("exception", "threads", "breadcrumbs", "request", "logentry", "transaction_info"))
# As many as the SDK itself would send, around the one that was running.
_LINES = 5
_LINE_LENGTH = 500

_PLAIN_ID = re.compile(rb"[\w.-]{8,64}", re.ASCII)
_GATE = "booty-telemetry-gate"
_RATE_LIMITED = 429


class RequestIds:
    """Gives each request of an app an id: the client's `X-Request-ID` if that is a plain one, or a new one.

    The answer carries it, also that to an unhandled error, and so do log lines and the error as it is sent.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        this = given if _PLAIN_ID.fullmatch(given) else os.urandom(16).hex().encode()
        # Never taken back: the server runs each request in a context of its own, and logs its failure there.
        request_id.set(this.decode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", this)]
            await send(message)

        await self._app(scope, receive, send_with_id)


class Transport(HttpTransport):
    """Sends as the SDK does, and knows what became of each event.

    None of the SDK's own calls tells: an id comes back for a wrong key too, and a flush is silent.
    """

    TIMEOUT = 10  # seconds; the SDK's 30 would let a tracker that hangs hold each event for that long

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        self._lock = threading.Lock()
        self._awaited: dict[str, Future[Outcome]] = {}
        self._outcome: Outcome = ""
        self._last: Outcome | None = None
        self._since = time.time()
        self._dropped = 0
        self._said_at = -QUIET_SECONDS
        self._said_dropped: int | None = None  # the count before the line that said so

    @property
    def status(self) -> dict[str, Any]:
        """What became of the last event, since when of each, and how many events were lost in all."""
        return {
            "status": self._last,
            "since": datetime.fromtimestamp(self._since, UTC).isoformat(timespec="seconds"),
            "dropped": self._dropped,
        }

    def outcome_of(self, event_id: str) -> "Future[Outcome]":
        """Promise the outcome of an event that is yet to be captured under this id."""
        with self._lock:
            return self._awaited.setdefault(event_id, Future())

    def capture_envelope(self, envelope: Envelope) -> None:
        """Queue the envelope, or drop it when the queue is full."""
        if self._worker.full():
            self._conclude(envelope, "the queue is full")
        super().capture_envelope(envelope)

    def _send_envelope(self, envelope: Envelope) -> None:
        self._outcome = _RATE_LIMITED  # unless a request is made: the SDK itself holds back what was limited
        try:
            super()._send_envelope(envelope)
        except Exception as error:
            self._outcome = _reason(error)
            raise
        finally:
            self._conclude(envelope, self._outcome)

    def _request(
        self, method: str, endpoint_type: EndpointType, body: Any, headers: Mapping[str, str]
    ) -> urllib3.BaseHTTPResponse:
        def once() -> urllib3.BaseHTTPResponse:
            # A redirect that is followed could end in somebody's login page, with status 200.
            url = self._auth.get_api_url(endpoint_type)
            return self._pool.request(method, url, body=body, headers=headers, retries=False, redirect=False)

        try:
            response = once()
        except urllib3.exceptions.ProtocolError:
            response = once()  # the connection was kept alive and just closed; an event id counts only once
        self._outcome = response.status
        return response

    def _conclude(self, envelope: Envelope, outcome: Outcome) -> None:
        events = sum(item.type == "event" for item in envelope.items)
        if not events:
            return
        event_id = str(envelope.headers.get("event_id"))
        with self._lock:
            if awaited := self._awaited.pop(event_id, None):
                awaited.set_result(outcome)
            if outcome != self._last:
                self._last, self._since = outcome, time.time()
            line = self._line(events, outcome)
        if line:
            log.warning(line)

    def _line(self, events: int, outcome: Outcome) -> str | None:
        if not accepted(outcome):
            self._dropped += events
            if self._said_dropped is None and time.monotonic() - self._said_at >= QUIET_SECONDS:
                self._said_at, self._said_dropped = time.monotonic(), self._dropped - events
                return f"errors are no longer reported: {describe(outcome, self.place)}"
        elif self._said_dropped is not None:
            lost, self._said_dropped = self._dropped - self._said_dropped, None
            return f"errors are reported again; {lost} were lost"
        return None

    @property
    def place(self) -> str:
        """The tracker's host and port."""
        assert self.parsed_dsn
        return f"{self.parsed_dsn.host}:{self.parsed_dsn.port}"


def _reason(error: BaseException) -> str:
    """Say in few words why a request was not answered."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    # urllib3 also takes a refusal for a timeout, so this comes last.
    timeout = any(isinstance(cause, (TimeoutError, urllib3.exceptions.TimeoutError)) for cause in causes)
    return "it does not answer in time" if timeout else type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__ or error.__context__


def accepted(outcome: Outcome) -> bool:
    """Whether the tracker took the event."""
    return isinstance(outcome, int) and 200 <= outcome < 300


def describe(outcome: Outcome, place: str) -> str:
    """Say what an outcome means, in a line that names the tracker by host and port and never the key."""
    if isinstance(outcome, str):
        return f"the tracker at {place} is not reached: {outcome}"
    meaning = {
        401: "refuses the key in SENTRY_DSN",
        403: "refuses the key in SENTRY_DSN",
        404: "has no such project as SENTRY_DSN names",
        413: "finds the event too large",
        _RATE_LIMITED: "takes no more events for now",
    }.get(outcome, "fails" if outcome >= 500 else "does not accept the event")
    return f"the tracker at {place} {meaning} ({outcome})"


def start(settings: Settings) -> None:
    """Start Sentry, for errors only, with the DSN that the settings must have."""
    assert settings.sentry_dsn
    dsn = settings.sentry_dsn.get_secret_value()
    redactor = redact.of_environment(dsn)
    headers = frozenset(name.strip().lower() for name in settings.booty_telemetry_headers.split(","))
    sentry_sdk.init(
        dsn=dsn,
        # None would let the SDK guess one from git or CI variables; before_send drops the empty one.
        release=settings.sentry_release or "",
        environment=settings.sentry_environment,
        # The event that proves the release is always sent.
        error_sampler=lambda event, _: 1.0 if event.get("fingerprint") == [_GATE] else settings.sentry_sample_rate,
        before_send=lambda event, _: before_send(event, redactor, headers, request_id.get()),
        before_breadcrumb=before_breadcrumb,
        event_scrubber=EventScrubber(recursive=True),
        transport=Transport,
        spotlight=False,
        integrations=[StarletteIntegration(), FastApiIntegration()],
        auto_enabling_integrations=False,
        auto_session_tracking=False,
        in_app_include=[__package__],
        # What should not leave: locals hold settings, argv and bodies anything, and the trace headers
        # would carry the DSN's public key to every host that the service calls.
        include_local_variables=False,
        max_request_body_size="never",
        disabled_integrations=[ArgvIntegration],
        trace_propagation_targets=[],
        # The SDK reads each frame's whole file anew, for milliseconds; before_send adds the lines from a cache.
        include_source_context=False,
        # The journal's traceback keeps the cause of an error.
        _experiments={"suppress_asgi_chained_exceptions": False},
    )


def stop() -> None:
    """Send what is queued, for at most `FLUSH_SECONDS`, and unbind the client from the process."""
    sentry_sdk.get_client().close(timeout=FLUSH_SECONDS)
    sentry_sdk.get_global_scope().set_client(None)


def before_send(
    event: Event, redactor: Redactor, headers: Collection[str] = (), request: str | None = None
) -> Event | None:
    """Return the event as it is sent, and leave the one that came as it was.

    Args:
        event: as the SDK made and serialized it.
        redactor: replaces secrets; labels, ids and names of packages are not touched.
        headers: the names, in lower case, of request headers that are sent.
        request: the request's id.
    """
    source = cast(dict[str, Any], event)
    sent = {
        # The keys of what the SDK itself makes are the protocol's.
        key: value if key in _LABELS else redactor.value(value, keys=key not in _PROTOCOL)
        for key, value in source.items()
        if key != "_meta"
    }
    if "contexts" in sent:
        sent["contexts"] |= {name: source["contexts"][name] for name in _CONTEXTS if name in source["contexts"]}
    if not sent.get("release"):
        sent.pop("release", None)
    routed = source.get("transaction_info", {}).get("source") != "url"
    if "transaction" in sent:
        # Without a route the SDK takes the path, and a path may hold anything.
        sent["transaction"] = redactor.known(sent["transaction"]) if routed else "(no route)"
    if "request" in sent:
        sent["request"] = _request(sent["request"], sent.get("transaction", ""), headers)
    if request:
        sent["tags"] = {**sent.get("tags", {}), "request_id": request}
    for kind in ("exception", "threads"):
        for value in sent.get(kind, {}).get("values", ()):
            for frame in (value.get("stacktrace") or {}).get("frames", ()):
                frame.update(_source_lines(frame, redactor))
    return cast(Event, sent)


def _request(request: dict[str, Any], route: str, headers: Collection[str]) -> dict[str, Any]:
    """Leave of a request its method, the route and allowed headers: no path, query, cookies, body or address."""
    url = urlsplit(request.get("url", ""))
    return {
        "method": request.get("method"),
        "url": f"{url.scheme}://{url.netloc.rpartition('@')[2]}{route}",
        "headers": {name: value for name, value in request.get("headers", {}).items() if name.lower() in headers},
    }


def _source_lines(frame: dict[str, Any], redactor: Redactor) -> dict[str, Any]:
    number = frame.get("lineno")
    lines = linecache.getlines(frame.get("abs_path", "")) if number else []
    if not number or not 0 < number <= len(lines):
        return {}

    def between(start: int, end: int) -> list[str]:
        return [redactor.known(line.rstrip("\r\n"))[:_LINE_LENGTH] for line in lines[max(start, 0) : end]]

    (line,) = between(number - 1, number)
    before, after = between(number - 1 - _LINES, number - 1), between(number, number + _LINES)
    return {"pre_context": before, "context_line": line, "post_context": after}


def before_breadcrumb(crumb: Breadcrumb, hint: BreadcrumbHint) -> Breadcrumb | None:
    """Return what is remembered of a step before an error: of a call to another host its place, no command lines."""
    if crumb.get("category") == "subprocess":
        return None
    if crumb.get("type") != "http":
        return crumb
    data = {
        key: value for key, value in crumb.get("data", {}).items() if key in {"http.method", "status_code", "reason"}
    }
    url = urlsplit(str(crumb.get("data", {}).get("url", "")))
    return {**crumb, "data": {**data, "url": f"{url.scheme}://{url.netloc.rpartition('@')[2]}"}}


def status() -> dict[str, Any] | None:
    """Tell what became of the errors so far, or None where none are reported."""
    transport = sentry_sdk.get_client().transport
    return transport.status if isinstance(transport, Transport) else None


async def gate_flaw() -> str | None:
    """Send one event and say why the tracker did not accept it within `GATE_SECONDS`, or None if it did.

    Only the HTTP status of that very event counts.
    """
    transport = sentry_sdk.get_client().transport
    if not isinstance(transport, Transport):
        return "SENTRY_DSN is not set, so no error would be reported"
    event_id = uuid.uuid4().hex
    outcome = transport.outcome_of(event_id)
    sentry_sdk.capture_event(
        {
            "event_id": event_id,
            "level": "info",
            "logger": __name__,
            "message": "Booty release is being proven",
            "transaction": "gate",
            "fingerprint": [_GATE],
        }
    )
    try:
        result = await asyncio.wait_for(asyncio.wrap_future(outcome), GATE_SECONDS)
    except TimeoutError:
        result = f"no answer within {GATE_SECONDS:g} s"
    return None if accepted(result) else describe(result, transport.place)
