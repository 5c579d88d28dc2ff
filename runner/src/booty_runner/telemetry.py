"""Telemetry: the events that go to the tracker, their delivery, and the gate that proves it before a release serves."""

import asyncio
import linecache
import logging
import math
import os
import re
import ssl
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import mktime_tz, parsedate_tz
from itertools import islice
from typing import Any, cast
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies

import sentry_sdk
import urllib3
from sentry_sdk.consts import EndpointType
from sentry_sdk.envelope import Envelope, PayloadRef
from sentry_sdk.integrations.argv import ArgvIntegration
from sentry_sdk.integrations.logging import ignore_logger
from sentry_sdk.scrubber import EventScrubber
from sentry_sdk.transport import HttpTransport
from sentry_sdk.types import Breadcrumb, BreadcrumbHint, Event
from sentry_sdk.utils import json_dumps
from sentry_sdk.worker import BackgroundWorker

from booty_runner import hooks, redact
from booty_runner.hooks import Scope
from booty_runner.logs import request_id
from booty_runner.redact import Redactor
from booty_runner.settings import current

log = logging.getLogger(__name__)
_server_log = logging.getLogger("uvicorn.error")

# At the stop, queued events get this long to be sent. While the drain lasts, each event that the tracker accepts starts
# this time again. A stop may take 2 s beyond the drain; the other 0.5 s are for requests that are cut and for exiting.
FLUSH_SECONDS = 1.5
# The tracker must accept the gate's event within this time.
GATE_SECONDS = 5.0
# At most one log line a minute reports that events are being dropped.
QUIET_SECONDS = 60.0

# Larger events are shortened. Sentry and Bugsink refuse events over 1 MB; Sentry also refuses compressed events over
# 200 KB (docs.sentry.io, "Size Limits").
EVENT_BYTES = 200_000
# Maximum lengths of texts and lists, tried in this order. Sentry itself cuts texts after 8192 characters.
_SHORTER = ((8192, 100), (2000, 40), (500, 15), (200, 5))
# If none of these is enough, the event keeps these keys only.
_ESSENTIAL = frozenset(
    ("exception", "logentry", "message", "logger", "transaction", "transaction_info", "fingerprint", "tags", "request")
)

# The outcome of an event: the tracker's HTTP status, or the reason in words why there is none.
Outcome = int | str

# Redaction skips these keys: an id or a label that contains a short secret must reach the tracker unchanged.
_LABELS = frozenset(
    ("event_id", "release", "environment", "timestamp", "level", "platform", "sdk", "modules", "server_name")
)
_CONTEXTS = ("trace", "runtime")
_PROTOCOL = frozenset(("exception", "threads", "breadcrumbs", "request", "logentry", "transaction_info"))
# Source lines before and after the one that was running; the SDK sends as many.
_LINES = 5
_LINE_LENGTH = 500

_PLAIN_ID = re.compile(rb"[\w.-]{8,64}", re.ASCII)
_TRACE_ID = re.compile("[0-9a-f]{32}")
_GATE = "booty-telemetry-gate"
_TOO_LARGE = 413
_RATE_LIMITED = 429
# OpenSSL's codes X509_V_ERR_… (x509_vfy.h) for a certificate whose issuer is not trusted.
_UNTRUSTED = frozenset((2, 18, 19, 20, 21))
_ADD_CA = "; add its CA to the host's (update-ca-certificates), or set SSL_CERT_FILE to a file that has it"
# The function that finds a request's route, and the request's scope: an error before routing gets its route from them.
_request: ContextVar[tuple[Callable[[Scope], str | None], Scope] | None] = ContextVar("_request", default=None)
# Fewer waiting envelopes count as an empty queue: the SDK's own reports wait there too.
_BACKLOG = 10


class RequestIds:
    """ASGI middleware that gives each request an id: the client's `X-Request-ID` if that is a plain one, or a new one.

    The response, the log lines and the event of the request carry the id. An error after a complete response (also
    after the response of status 500) is logged here, so that uvicorn leaves the connection open. Two exceptions are not
    reported: a client that disconnects during its request, and a response without `Content-Length` that the stop cuts.
    """

    def __init__(self, app: Any, route: Callable[[Scope], str | None]) -> None:
        self._app = app
        self._route = route

    async def __call__(
        self, scope: Scope, receive: Any, send: Callable[[MutableMapping[str, Any]], Awaitable[None]]
    ) -> None:
        """Answer one request."""
        client_id = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        identity = client_id if _PLAIN_ID.fullmatch(client_id) else os.urandom(16).hex().encode()
        # Not reset afterwards: uvicorn runs each request in its own context, and logs its errors there.
        request_id.set(identity.decode())
        _request.set((self._route, scope))

        headers: Sequence[tuple[bytes, bytes]] | None = None
        answered = False

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            nonlocal answered, headers
            if message["type"] == "http.response.start":
                message["headers"] = headers = [*message.get("headers", ()), (b"x-request-id", identity)]
            await send(message)
            answered = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError as error:  # cut at the stop; the SDK does not report a BaseException by itself
            if headers and not answered and not any(name.lower() == b"content-length" for name, _ in headers):
                return
            with sentry_sdk.new_scope() as cut:
                cut.set_transaction_name(_route() or "(no route)", "route")
                sentry_sdk.capture_exception(error)
            raise
        except hooks.departures:
            log.info("the client left within its request to %s", _route() or "(no route)")
        except Exception as error:
            if not answered:
                raise
            # uvicorn would log the same and close the connection, though the response announced keep-alive.
            _server_log.error("Exception in ASGI application\n", exc_info=error)


class Deliveries:
    """Records the outcomes of events, and decides when a log line about them is due."""

    def __init__(self, place: str) -> None:
        self._place = place
        self.last: Outcome | None = None
        self._since: float | None = None
        self._dropped = 0
        self._logged_at = self._logged_large_at = -math.inf
        self._dropped_before: int | None = None  # the count before the losses that a line reported as begun

    @property
    def status(self) -> dict[str, Any]:
        """The last outcome, since when all outcomes are the same (in UTC), and how many events were lost in total."""
        since = None if self._since is None else datetime.fromtimestamp(self._since, UTC).isoformat(timespec="seconds")
        return {"status": self.last, "since": since, "dropped": self._dropped}

    def record(self, outcome: Outcome, drained: bool, now: float) -> str | None:
        """Record one event, and return a log line when losses begin and when they are over.

        Args:
            outcome: the event's outcome.
            drained: whether the queue is nearly empty; before that, a slow tracker has not caught up.
            now: the time, in seconds since the epoch.
        """
        if outcome != self.last:
            self.last, self._since = outcome, now
        if not accepted(outcome):
            self._dropped += 1
            if outcome == _TOO_LARGE:  # concerns this event only
                if now - self._logged_large_at < QUIET_SECONDS:
                    return None
                self._logged_large_at = now
                return f"an error was not reported: {describe(outcome, self._place)}"
            if self._dropped_before is None and now - self._logged_at >= QUIET_SECONDS:
                self._logged_at, self._dropped_before = now, self._dropped - 1
                return f"errors are no longer reported: {describe(outcome, self._place)}"
        elif drained and self._dropped_before is not None:
            lost, self._dropped_before = self._dropped - self._dropped_before, None
            return f"errors are reported again; {lost} were lost"
        return None


class Transport(HttpTransport):
    """The SDK's transport, which also records the outcome of each event.

    The SDK reports no outcome: `capture_event` returns an id even when the key is wrong, and `flush` returns nothing.
    """

    TIMEOUT = 10  # seconds for each event; the SDK's own 30 s are too long with a tracker that hangs

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options)
        self._lock = threading.Lock()
        self._awaited: dict[str, Future[Outcome]] = {}
        self._outcome: Outcome = ""
        self._accepted = 0
        assert self.parsed_dsn
        proxy_note, self.hint = self._describe_proxy()
        self.place = f"{self.parsed_dsn.host}:{self.parsed_dsn.port}{proxy_note}"
        self.deliveries = Deliveries(self.place)
        self.release: str | None = None  # of the last event; "" if that had none
        self.clock_offset: float | None = None  # the tracker's clock minus ours, in seconds, at its last answer

    @property
    def last_flaw(self) -> str | None:
        """Why the tracker did not accept the last event; None if it did, or before the first event."""
        outcome = self.deliveries.last
        return None if outcome is None or accepted(outcome) else describe(outcome, self.place)

    def outcome_of(self, event_id: str) -> "Future[Outcome]":
        """Return a future for the outcome of an event that will be captured under this id."""
        with self._lock:
            return self._awaited.setdefault(event_id, Future())

    def finish(self, by: float) -> None:
        """Wait until the queue is empty or the time is up; see `stop`."""
        queue = cast(BackgroundWorker, self._worker)._queue
        accepted_before, deadline = self._accepted, min(time.monotonic(), by or math.inf) + FLUSH_SECONDS
        while queue.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.01)
            if self._accepted > accepted_before:
                accepted_before, deadline = self._accepted, max(deadline, min(by, time.monotonic() + FLUSH_SECONDS))

    def _proxy(self) -> tuple[str, str] | None:
        """Return the variable that names the proxy for the tracker and its value, chosen as the SDK does, or None."""
        assert self.parsed_dsn
        proxies = {} if self._in_no_proxy(self.parsed_dsn) else getproxies()
        scheme = self.parsed_dsn.scheme if self.parsed_dsn.scheme in proxies else "http"
        return (f"{scheme.upper()}_PROXY", proxies[scheme]) if scheme in proxies else None

    def _make_pool(self) -> Any:
        try:
            if (proxy := self._proxy()) and (user := urlsplit(proxy[1]).username):
                login = f"{unquote(user)}:{unquote(urlsplit(proxy[1]).password or '')}"
                self.options["proxy_headers"] = urllib3.make_headers(proxy_basic_auth=login)
            return super()._make_pool()
        except ValueError as error:
            assert proxy
            log.error("refusing to serve: %s must be a URL: http://HOST:PORT", proxy[0])
            raise SystemExit(1) from error

    def _describe_proxy(self) -> tuple[str, str]:
        """Return a note that names the proxy by host and port, and a hint how to set one if there is none."""
        assert self.parsed_dsn
        if not (proxy := self._proxy()):
            return "", f"; if only a proxy leads there, set {self.parsed_dsn.scheme.upper()}_PROXY"
        if type(self._pool) is urllib3.PoolManager:
            return f" (not by the SOCKS proxy of {proxy[0]}, since the app does not depend on PySocks)", ""
        parts = urlsplit(proxy[1])
        return f" (by the proxy {parts.hostname}:{parts.port} of {proxy[0]})", ""

    def capture_envelope(self, envelope: Envelope) -> None:
        """Queue the envelope, or drop it when the queue is full."""
        if self._worker.full():
            self._conclude(envelope, "the queue is full")
        super().capture_envelope(envelope)

    def _send_envelope(self, envelope: Envelope) -> None:
        self._outcome = _RATE_LIMITED  # stays so if the SDK makes no request because of an earlier 429
        try:
            for item in envelope.items:
                # Measured in this thread, which serializes the event anyway and keeps the bytes.
                if (event := item.get_event()) and (size := len(item.get_bytes())) > EVENT_BYTES:
                    item.payload = PayloadRef(json=shorten(event, size))
            super()._send_envelope(envelope)
        except Exception as error:
            self._outcome = _describe_error(error)
            raise
        finally:
            self._conclude(envelope, self._outcome)

    def _request(
        self, method: str, endpoint_type: EndpointType, body: Any, headers: Mapping[str, str]
    ) -> urllib3.BaseHTTPResponse:
        def request() -> urllib3.BaseHTTPResponse:
            # Redirects are not followed: one could lead to a login page that answers 200.
            url = self._auth.get_api_url(endpoint_type)
            return self._pool.request(method, url, body=body, headers=headers, retries=False, redirect=False)

        try:
            response = request()
        except urllib3.exceptions.ProtocolError:
            response = request()  # the tracker had closed the kept connection; it stores an event id only once
        self._outcome = response.status
        if date := parsedate_tz(response.headers.get("date", "")):
            self.clock_offset = mktime_tz(date) - time.time()
        return response

    def _conclude(self, envelope: Envelope, outcome: Outcome) -> None:
        if (event := envelope.get_event()) is None:
            return
        self.release = str(event.get("release") or "")
        drained = cast(BackgroundWorker, self._worker)._queue.unfinished_tasks < _BACKLOG
        self._accepted += accepted(outcome)
        with self._lock:
            awaited = self._awaited.pop(str(envelope.headers.get("event_id")), None)
            if awaited and awaited.set_running_or_notify_cancel():
                awaited.set_result(outcome)
            line = self.deliveries.record(outcome, drained, time.time())
        if line:
            log.warning(line)


def _describe_error(error: BaseException) -> str:
    """Return in few words why a request got no answer."""
    causes = list(_causes(error))
    file = next((name for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE") if os.environ.get(name)), None)
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            hint = _ADD_CA if cause.verify_code in _UNTRUSTED else ""
            return f"its certificate is not accepted: {cause.verify_message}{hint}"
        if isinstance(cause, (FileNotFoundError, PermissionError)) and file:
            return f"its certificate can't be checked, since {file} names a file that can't be read: {cause.strerror}"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        if isinstance(cause, OSError) and str(cause).startswith("Tunnel connection failed: "):  # http.client's
            return str(cause)
    # Last of all, because urllib3's ConnectTimeoutError is the base class of its error for a refused connection.
    timeout = any(isinstance(cause, (TimeoutError, urllib3.exceptions.TimeoutError)) for cause in causes)
    return "it does not answer in time" if timeout else type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__ or error.__context__


def accepted(outcome: Outcome) -> bool:
    """Whether the tracker accepted the event."""
    return isinstance(outcome, int) and 200 <= outcome < 300


def describe(outcome: Outcome, place: str) -> str:
    """Return an outcome in words; the text names the tracker by host and port, never by its key."""
    if isinstance(outcome, str):
        return f"the tracker at {place} is not reached: {outcome}"
    meaning = {
        401: "refuses the key in SENTRY_DSN",
        403: "refuses the key in SENTRY_DSN",
        404: "has no such project as SENTRY_DSN names",
        _TOO_LARGE: "finds the event too large",
        _RATE_LIMITED: "takes no more events for now",
    }.get(outcome, "fails" if outcome >= 500 else "does not accept the event")
    return f"the tracker at {place} {meaning} ({outcome})"


def options(dsn: str, release: str | None, environment: str, sample_rate: float = 1.0) -> dict[str, Any]:
    """Return arguments for `sentry_sdk.init`: labels, redaction, and the transport that the gate needs.

    Args:
        dsn: the tracker's.
        release: the release's label; None leaves it out of events.
        environment: the environment's label.
        sample_rate: the share of errors to send, from 0 to 1.
    """
    redactor = redact.of_environment(dsn)
    headers = frozenset(name.strip().lower() for name in current().booty_telemetry_headers.split(","))
    # uvicorn logs each unhandled error again; the SDK would build a second event only to drop it.
    ignore_logger(_server_log.name)
    return {
        "dsn": dsn,
        # With None, the SDK guesses a release from git or CI variables. before_send() removes the empty one.
        "release": release or "",
        "environment": environment,
        # The gate's event is always sent.
        "error_sampler": lambda event, _: 1.0 if event.get("fingerprint") == [_GATE] else sample_rate,
        "before_send": lambda event, _: before_send(event, redactor, headers, request_id.get(), _route()),
        "before_breadcrumb": before_breadcrumb,
        "event_scrubber": EventScrubber(recursive=True),
        "transport": Transport,
        # The host's CAs, or those that SSL_CERT_FILE names; the SDK's default is certifi's list.
        "ca_certs": None if os.environ.get("REQUESTS_CA_BUNDLE") else ssl.get_default_verify_paths().cafile,
        "spotlight": False,
        "auto_enabling_integrations": False,
        "auto_session_tracking": False,
        # Not sent, because they may contain secrets: local variables, bodies, argv. Trace headers would send the DSN's
        # public key to every host that the service calls.
        "include_local_variables": False,
        "max_request_body_size": "never",
        "disabled_integrations": [ArgvIntegration],
        "trace_propagation_targets": [],
        # The SDK reads the whole file of each frame, which takes milliseconds; before_send() uses a cache.
        "include_source_context": False,
        # Keep the chained causes in the journal's traceback. Compression level 9 takes ten times the CPU of level 3 and
        # saves a tenth of the size.
        "_experiments": {"suppress_asgi_chained_exceptions": False, "transport_compression_level": 3},
    }


def stop() -> None:
    """Send the queued events and unbind the client from the process. Blocks the event loop; uses no thread.

    The wait lasts `FLUSH_SECONDS`. It goes on until the end of the drain while the tracker accepts events. It never
    lasts longer than `FLUSH_SECONDS` after the drain.
    """
    client = sentry_sdk.get_client()
    if own := transport():
        own.finish(hooks.drain_ends)
    client.close(timeout=0 if own else FLUSH_SECONDS)
    sentry_sdk.get_global_scope().set_client(None)


def before_send(
    event: Event,
    redactor: Redactor,
    headers: Collection[str] = (),
    request: str | None = None,
    route: str | None = None,
) -> Event | None:
    """Return a redacted copy of an event, with source lines and the request's id and route.

    Args:
        event: serialized by the SDK; it is not changed.
        redactor: replaces secrets, except in labels, ids and package names.
        headers: names, in lower case, of the request headers to send.
        request: the request's id.
        route: the request's full route, with the prefixes of its routers, if known.
    """
    source = cast(dict[str, Any], event)
    sent = {
        # Under a protocol key, the inner keys are the protocol's too, and not redacted.
        key: value if key in _LABELS else redactor.value(value, keys=key not in _PROTOCOL)
        for key, value in source.items()
        if key != "_meta"
    }
    if "contexts" in sent:
        sent["contexts"] |= {name: source["contexts"][name] for name in _CONTEXTS if name in source["contexts"]}
    if not sent.get("release"):
        sent.pop("release", None)
    if "transaction" in sent:
        source_of_name = source.get("transaction_info", {}).get("source")
        if route and source_of_name in {"route", "url"}:
            sent |= {"transaction": route, "transaction_info": {"source": "route"}}
        elif source_of_name == "url":
            # Without a route the SDK names the transaction after the path, which may contain secrets.
            sent["transaction"] = "(no route)"
        else:
            sent["transaction"] = redactor.known(source["transaction"])
    if "request" in sent:
        origin = redactor.known(_origin(source["request"].get("url")))
        sent["request"] = _request_of(sent["request"], origin + sent.get("transaction", ""), headers)
    if request:
        sent["tags"] = {**sent.get("tags", {}), "request_id": request}
        # One trace per request. Without tracing, the SDK gives the events of all requests the same trace.
        trace = request if _TRACE_ID.fullmatch(request) else uuid.uuid5(uuid.NAMESPACE_URL, request).hex
        sent["contexts"] = {**sent.get("contexts", {}), "trace": {"trace_id": trace, "span_id": trace[:16]}}
    for kind in ("exception", "threads"):
        for value in sent.get(kind, {}).get("values", ()):
            for frame in (value.get("stacktrace") or {}).get("frames", ()):
                frame.update(_source_lines(frame, redactor))
    return cast(Event, sent)


def shorten(event: Event, size: int) -> Event:
    """Return a copy of a too large event without the middle of long texts and lists.

    Args:
        event: from `before_send`: if a secret were cut first, redaction would miss its halves.
        size: its size in bytes as JSON.
    """
    source = cast(dict[str, Any], event)
    essential = {key: value for key, value in source.items() if key in _LABELS | _ESSENTIAL}
    for part, length, many in [*((source, *limits) for limits in _SHORTER), (essential, *_SHORTER[-1])]:
        sent = {key: value if key in _LABELS else _shortened(value, length, many) for key, value in part.items()}
        sent["extra"] = {**sent.get("extra", {}), "shortened": f"from {size:,} bytes"}
        if len(json_dumps(sent)) <= EVENT_BYTES:
            break
    return cast(Event, sent)


def _shortened(value: Any, length: int, many: int) -> Any:
    """Cut the middle out of long texts and lists. A stack keeps a few outermost frames and many innermost ones."""
    if isinstance(value, str) and len(value) > length:
        left_out = f" … {len(value) - length} characters left out … "
        return value[: length // 2] + left_out + value[len(value) - length // 2 :]
    if isinstance(value, dict):
        items = islice(value.items(), 20 * many)
        return {key: _shortened(inner, length, many) for key, inner in items}
    if isinstance(value, (list, tuple)):
        kept = value if len(value) <= many else [*value[: many // 5], *value[many // 5 - many :]]
        return [_shortened(inner, length, many) for inner in kept]
    return value


def _route() -> str | None:
    """Return the route of the request that is being answered, even before the app's router has run."""
    if (request := _request.get()) is None:
        return None
    route, scope = request
    return route(scope)


def _request_of(request: dict[str, Any], url: str, headers: Collection[str]) -> dict[str, Any]:
    """Return a request's method, URL and allowed headers: no path, query, cookies, body or client address."""
    allowed = {name: value for name, value in request.get("headers", {}).items() if name.lower() in headers}
    return {"method": request.get("method"), "url": url, "headers": allowed}


def _origin(url: Any) -> str:
    """Return a URL's scheme, host and port, or "" if it can't be parsed."""
    try:
        parts = urlsplit(str(url))
    except ValueError:  # a client may send any Host header
        return ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


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
    """Return a breadcrumb as it is sent: of an outgoing request no path or query, of a subprocess nothing."""
    if crumb.get("category") == "subprocess":
        return None
    if crumb.get("type") != "http":
        return crumb
    data = {
        key: value for key, value in crumb.get("data", {}).items() if key in {"http.method", "status_code", "reason"}
    }
    return {**crumb, "data": {**data, "url": _origin(crumb.get("data", {}).get("url"))}}


def transport() -> Transport | None:
    """Return this process's transport, or None if no errors are reported."""
    current_transport = sentry_sdk.get_client().transport
    return current_transport if isinstance(current_transport, Transport) else None


async def gate_flaw() -> str | None:
    """Send one event, and return why the tracker did not accept it within `GATE_SECONDS`, or None."""
    if (own := transport()) is None:
        return "SENTRY_DSN is not set, so no error would be reported"
    event_id = uuid.uuid4().hex
    outcome = own.outcome_of(event_id)
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
    if accepted(result):
        return None
    hint = own.hint if isinstance(result, str) and "certificate" not in result else ""
    return f"{describe(result, own.place)}{hint}"
