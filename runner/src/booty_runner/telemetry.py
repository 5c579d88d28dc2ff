"""Telemetry: what leaves for the tracker, whether it arrives, and the proof that it does."""

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

# Events still queued at the end get this long, and from each that the tracker takes anew while the drain lasts; one
# that hangs must not hold up a stop. A drain that was used up counts from its end, not from that of what was cut then:
# of the 2 s that a stop may take beyond it, half a second must be left for that, and for the end of the process.
FLUSH_SECONDS = 1.5
# How long the tracker may take to accept the event that proves a release.
GATE_SECONDS = 5.0
# At most one line a minute says that events are being dropped, however often that begins anew.
QUIET_SECONDS = 60.0

# A larger event is shortened. Sentry and Bugsink refuse events of over 1 MB, and Sentry those of over 200 KB once they
# are compressed (docs.sentry.io, "Size Limits").
EVENT_BYTES = 200_000
# How long a text and a list may be then; the first that is enough. Sentry itself cuts a text after 8192 characters.
_SHORTER = ((8192, 100), (2000, 40), (500, 15), (200, 5))
# What is left when not even that is enough.
_ESSENTIAL = frozenset(
    ("exception", "logentry", "message", "logger", "transaction", "transaction_info", "fingerprint", "tags", "request")
)

# What became of an event: the HTTP status that the tracker answered with, or in words why there is none.
Outcome = int | str

# Not touched by redaction: a secret that happens to be part of an id or a label would break what the tracker needs.
_LABELS = frozenset(
    ("event_id", "release", "environment", "timestamp", "level", "platform", "sdk", "modules", "server_name")
)
_CONTEXTS = ("trace", "runtime")
_PROTOCOL = frozenset(("exception", "threads", "breadcrumbs", "request", "logentry", "transaction_info"))
# As many as the SDK itself would send, around the one that was running.
_LINES = 5
_LINE_LENGTH = 500

_PLAIN_ID = re.compile(rb"[\w.-]{8,64}", re.ASCII)
_TRACE_ID = re.compile("[0-9a-f]{32}")
_GATE = "booty-telemetry-gate"
_TOO_LARGE = 413
_RATE_LIMITED = 429
# OpenSSL's X509_V_ERR_… (x509_vfy.h) of a certificate whose issuer is not known to be trusted.
_UNTRUSTED = frozenset((2, 18, 19, 20, 21))
_ADD_CA = "; add its CA to the host's (update-ca-certificates), or set SSL_CERT_FILE to a file that has it"
# How the app that answers names its routes, and the request's scope, for an error that happens on the way to the route.
_request: ContextVar[tuple[Callable[[Scope], str | None], Scope] | None] = ContextVar("_request", default=None)
_BACKLOG = 10


class RequestIds:
    """Gives each request of an app an id: the client's `X-Request-ID` if that is a plain one, or a new one.

    The answer carries it, also that to an unhandled error, and so do log lines and the error as it is sent. An error
    after a whole answer, which the answer of status 500 is too, ends there and leaves the connection open. No error is
    a client that leaves within its request, and a response without an announced length that the stop cuts.
    """

    def __init__(self, app: Any, route: Callable[[Scope], str | None]) -> None:
        self._app = app
        self._route = route

    async def __call__(
        self, scope: Scope, receive: Any, send: Callable[[MutableMapping[str, Any]], Awaitable[None]]
    ) -> None:
        """Answer one request."""
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        this = given if _PLAIN_ID.fullmatch(given) else os.urandom(16).hex().encode()
        # Never taken back: the server runs each request in a context of its own, and logs its failure there.
        request_id.set(this.decode())
        _request.set((self._route, scope))

        headers: Sequence[tuple[bytes, bytes]] | None = None
        answered = False

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            nonlocal answered, headers
            if message["type"] == "http.response.start":
                message["headers"] = headers = [*message.get("headers", ()), (b"x-request-id", this)]
            await send(message)
            answered = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError as error:  # cut at the stop; the SDK only sees what is an Exception
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
            # The server would log the same, then close a connection that the client was told it may use again.
            _server_log.error("Exception in ASGI application\n", exc_info=error)


class Deliveries:
    """What became of the events so far, and when a line of the log is due about it."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._last: Outcome | None = None
        self._since: float | None = None
        self._dropped = 0
        self._said_at = self._said_large_at = -math.inf
        self._said_dropped: int | None = None  # the count before the loss that a line told of

    @property
    def status(self) -> dict[str, Any]:
        """What became of the last event, since when of each (in UTC), and how many were lost in all."""
        since = None if self._since is None else datetime.fromtimestamp(self._since, UTC).isoformat(timespec="seconds")
        return {"status": self._last, "since": since, "dropped": self._dropped}

    def record(self, outcome: Outcome, drained: bool, now: float) -> str | None:
        """Record one event and return the line that is due: one when losses begin, one when they are over.

        Args:
            outcome: of the event.
            drained: whether hardly another event waits, without which a slow tracker has not caught up.
            now: the time, in seconds since the epoch.
        """
        if outcome != self._last:
            self._last, self._since = outcome, now
        if not accepted(outcome):
            self._dropped += 1
            if outcome == _TOO_LARGE:  # says nothing of other events
                if now - self._said_large_at < QUIET_SECONDS:
                    return None
                self._said_large_at = now
                return f"an error was not reported: {describe(outcome, self._place)}"
            if self._said_dropped is None and now - self._said_at >= QUIET_SECONDS:
                self._said_at, self._said_dropped = now, self._dropped - 1
                return f"errors are no longer reported: {describe(outcome, self._place)}"
        elif drained and self._said_dropped is not None:
            lost, self._said_dropped = self._dropped - self._said_dropped, None
            return f"errors are reported again; {lost} were lost"
        return None


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
        self._taken = 0
        assert self.parsed_dsn
        way, self.hint = self._way()
        self.place = f"{self.parsed_dsn.host}:{self.parsed_dsn.port}{way}"
        self.deliveries = Deliveries(self.place)
        self.release: str | None = None  # of the last event, "" if it had none
        self.clock_offset: float | None = None  # by how many seconds the tracker was ahead at its last answer

    def outcome_of(self, event_id: str) -> "Future[Outcome]":
        """Promise the outcome of an event that is yet to be captured under this id."""
        with self._lock:
            return self._awaited.setdefault(event_id, Future())

    def finish(self, by: float) -> None:
        """Wait until nothing is queued or the time is up; see `stop`."""
        queue = cast(BackgroundWorker, self._worker)._queue
        taken, patience = self._taken, min(time.monotonic(), by or math.inf) + FLUSH_SECONDS
        while queue.unfinished_tasks and time.monotonic() < patience:
            time.sleep(0.01)
            if self._taken > taken:
                taken, patience = self._taken, max(patience, min(by, time.monotonic() + FLUSH_SECONDS))

    def _proxy(self) -> tuple[str, str] | None:
        """Give the variable that names the proxy for the tracker, if any, as the SDK chooses it, and its value."""
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

    def _way(self) -> tuple[str, str]:
        """Say which proxy the requests take, by its host and port alone, or else how to set one."""
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
        self._outcome = _RATE_LIMITED  # unless a request is made: the SDK itself holds back what was limited
        try:
            for item in envelope.items:
                # Here and not before, since an event becomes bytes in this thread anyway, and keeps them.
                if (event := item.get_event()) and (size := len(item.get_bytes())) > EVENT_BYTES:
                    item.payload = PayloadRef(json=shorten(event, size))
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
        if date := _seconds(response.headers.get("date")):
            self.clock_offset = date - time.time()
        return response

    def _conclude(self, envelope: Envelope, outcome: Outcome) -> None:
        if (event := envelope.get_event()) is None:
            return
        self.release = str(event.get("release") or "")
        # Not quite none: what the SDK itself tells the tracker waits there as well.
        drained = cast(BackgroundWorker, self._worker)._queue.unfinished_tasks < _BACKLOG
        self._taken += accepted(outcome)
        with self._lock:
            awaited = self._awaited.pop(str(envelope.headers.get("event_id")), None)
            if awaited and awaited.set_running_or_notify_cancel():
                awaited.set_result(outcome)
            line = self.deliveries.record(outcome, drained, time.time())
        if line:
            log.warning(line)


def _seconds(date: str | None) -> float | None:
    """Read the date of an HTTP answer, in seconds since 1970."""
    parsed = parsedate_tz(date or "")
    return float(mktime_tz(parsed)) if parsed else None


def _reason(error: BaseException) -> str:
    """Say in few words why a request was not answered."""
    causes = list(_causes(error))
    file = next((name for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE") if os.environ.get(name)), None)
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            mend = _ADD_CA if cause.verify_code in _UNTRUSTED else ""
            return f"its certificate is not accepted: {cause.verify_message}{mend}"
        if isinstance(cause, (FileNotFoundError, PermissionError)) and file:
            return f"its certificate can't be checked, since {file} names a file that can't be read: {cause.strerror}"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        if isinstance(cause, OSError) and str(cause).startswith("Tunnel connection failed: "):  # http.client's
            return str(cause)
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
        _TOO_LARGE: "finds the event too large",
        _RATE_LIMITED: "takes no more events for now",
    }.get(outcome, "fails" if outcome >= 500 else "does not accept the event")
    return f"the tracker at {place} {meaning} ({outcome})"


def options(dsn: str, release: str | None, environment: str, sample_rate: float = 1.0) -> dict[str, Any]:
    """Return what `sentry_sdk.init` needs to report errors: with labels, without secrets, and known to the gate.

    Args:
        dsn: of the tracker.
        release: the label; None leaves it out of the events.
        environment: the label.
        sample_rate: the share of errors to send, from 0 to 1.
    """
    redactor = redact.of_environment(dsn)
    headers = frozenset(name.strip().lower() for name in current().booty_telemetry_headers.split(","))
    # The server logs each unhandled error once more, which the SDK would work out in full and then drop.
    ignore_logger(_server_log.name)
    return {
        "dsn": dsn,
        # None would let the SDK guess one from git or CI variables; before_send drops the empty one.
        "release": release or "",
        "environment": environment,
        # The event that proves the release is always sent.
        "error_sampler": lambda event, _: 1.0 if event.get("fingerprint") == [_GATE] else sample_rate,
        "before_send": lambda event, _: before_send(event, redactor, headers, request_id.get(), _route()),
        "before_breadcrumb": before_breadcrumb,
        "event_scrubber": EventScrubber(recursive=True),
        "transport": Transport,
        # The host's CAs, or those that SSL_CERT_FILE names; the SDK's own choice is the list that certifi brings.
        "ca_certs": None if os.environ.get("REQUESTS_CA_BUNDLE") else ssl.get_default_verify_paths().cafile,
        "spotlight": False,
        "auto_enabling_integrations": False,
        "auto_session_tracking": False,
        # What should not leave: locals hold settings, argv and bodies anything, and the trace headers
        # would carry the DSN's public key to every host that the service calls.
        "include_local_variables": False,
        "max_request_body_size": "never",
        "disabled_integrations": [ArgvIntegration],
        "trace_propagation_targets": [],
        # The SDK reads each frame's whole file anew, for milliseconds; before_send adds the lines from a cache.
        "include_source_context": False,
        # The journal's traceback keeps the cause of an error.
        # Compressing by level 9 costs ten times the CPU of level 3, for a tenth of the size.
        "_experiments": {"suppress_asgi_chained_exceptions": False, "transport_compression_level": 3},
    }


def stop() -> None:
    """Send what is queued and unbind the client from the process; it blocks the event loop, and needs no thread.

    A tracker that goes on taking events is waited for until the drain is over, another one for `FLUSH_SECONDS`, and
    none for longer than that after the drain.
    """
    client = sentry_sdk.get_client()
    if known := isinstance(client.transport, Transport):
        client.transport.finish(hooks.drain_ends)
    client.close(timeout=0 if known else FLUSH_SECONDS)
    sentry_sdk.get_global_scope().set_client(None)


def before_send(
    event: Event,
    redactor: Redactor,
    headers: Collection[str] = (),
    request: str | None = None,
    route: str | None = None,
) -> Event | None:
    """Return the event as it is sent, and leave the one that came as it was.

    Args:
        event: as the SDK made and serialized it.
        redactor: replaces secrets; labels, ids and names of packages are not touched.
        headers: the names, in lower case, of request headers that are sent.
        request: the request's id.
        route: the whole route, with the prefixes of its routers, if it is known.
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
    if "transaction" in sent:
        source_of_name = source.get("transaction_info", {}).get("source")
        if route and source_of_name in {"route", "url"}:
            sent |= {"transaction": route, "transaction_info": {"source": "route"}}
        elif source_of_name == "url":
            # Without a route the SDK takes the path, and a path may hold anything.
            sent["transaction"] = "(no route)"
        else:
            sent["transaction"] = redactor.known(source["transaction"])
    if "request" in sent:
        origin = redactor.known(_origin(source["request"].get("url")))
        sent["request"] = _request_of(sent["request"], origin + sent.get("transaction", ""), headers)
    if request:
        sent["tags"] = {**sent.get("tags", {}), "request_id": request}
        # Errors of one request are one trace, and the SDK, which begins none, would give all the same.
        trace = request if _TRACE_ID.fullmatch(request) else uuid.uuid5(uuid.NAMESPACE_URL, request).hex
        sent["contexts"] = {**sent.get("contexts", {}), "trace": {"trace_id": trace, "span_id": trace[:16]}}
    for kind in ("exception", "threads"):
        for value in sent.get(kind, {}).get("values", ()):
            for frame in (value.get("stacktrace") or {}).get("frames", ()):
                frame.update(_source_lines(frame, redactor))
    return cast(Event, sent)


def shorten(event: Event, size: int) -> Event:
    """Return an event that is too large as one that is not: without the middle of long texts and lists.

    Args:
        event: as `before_send` returned it, so that no secret is cut in two before it is redacted.
        size: how many bytes it has as JSON.
    """
    source = cast(dict[str, Any], event)
    essential = {key: value for key, value in source.items() if key in _LABELS | _ESSENTIAL}
    for rest, length, many in [*((source, *each) for each in _SHORTER), (essential, *_SHORTER[-1])]:
        sent = {key: value if key in _LABELS else _shortened(value, length, many) for key, value in rest.items()}
        sent["extra"] = {**sent.get("extra", {}), "shortened": f"from {size:,} bytes"}
        if len(json_dumps(sent)) <= EVENT_BYTES:
            break
    return cast(Event, sent)


def _shortened(value: Any, length: int, many: int) -> Any:
    """Cut long texts and lists in the middle: of a stack the outermost frames are kept, and more of the innermost."""
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
    """Find the route of the request that is being answered, also before the router has."""
    if (answering := _request.get()) is None:
        return None
    route, scope = answering
    return route(scope)


def _request_of(request: dict[str, Any], url: str, headers: Collection[str]) -> dict[str, Any]:
    """Leave of a request its method, the route and allowed headers: no path, query, cookies, body or address."""
    allowed = {name: value for name, value in request.get("headers", {}).items() if name.lower() in headers}
    return {"method": request.get("method"), "url": url, "headers": allowed}


def _origin(url: Any) -> str:
    """Give a URL up to its path, without user and password, or nothing of one that is no URL."""
    try:
        parts = urlsplit(str(url))
    except ValueError:  # a client may claim any host
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
    """Return what is remembered of a step before an error: of a call to another host its place, no command lines."""
    if crumb.get("category") == "subprocess":
        return None
    if crumb.get("type") != "http":
        return crumb
    data = {
        key: value for key, value in crumb.get("data", {}).items() if key in {"http.method", "status_code", "reason"}
    }
    return {**crumb, "data": {**data, "url": _origin(crumb.get("data", {}).get("url"))}}


def status() -> dict[str, Any] | None:
    """Tell what became of the errors so far, or None where none are reported."""
    transport = sentry_sdk.get_client().transport
    return transport.deliveries.status if isinstance(transport, Transport) else None


def last_flaw() -> str | None:
    """Say what became of the last event unless the tracker accepted it; None if there was none."""
    transport = sentry_sdk.get_client().transport
    if not isinstance(transport, Transport) or (outcome := transport.deliveries.status["status"]) is None:
        return None
    return None if accepted(outcome) else describe(outcome, transport.place)


def sent_release() -> str | None:
    """Tell which release the last event named, "" for none; None if there was no event."""
    return getattr(sentry_sdk.get_client().transport, "release", None)


def clock_offset() -> float | None:
    """Tell by how many seconds the tracker's clock was ahead of this host's at its last answer, if there was one."""
    return getattr(sentry_sdk.get_client().transport, "clock_offset", None)


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
    if accepted(result):
        return None
    hint = transport.hint if isinstance(result, str) and "certificate" not in result else ""
    return f"{describe(result, transport.place)}{hint}"
