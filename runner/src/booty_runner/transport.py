"""Watch the transports of a Sentry SDK: label and redact each event, and record its outcome.

A transport is the last place that every event passes, behind the app's own filters. The functions of the transport's
instance are replaced, because an app may have any version of the SDK and any class of transport.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from email.utils import mktime_tz, parsedate_tz
from functools import partial
from importlib import import_module
from typing import Any
from urllib.parse import unquote
from urllib.request import getproxies

from booty_runner import redact
from booty_runner.deliveries import RATE_LIMITED, Deliveries, Outcome, accepted, describe_error
from booty_runner.events import EVENT_BYTES, Event, clean, current_request, shorten, size_of
from booty_runner.redact import Redactor
from booty_runner.settings import current, labels

log = logging.getLogger("booty_runner.telemetry")

# For each event; the SDK's own 30 s are too long with a tracker that hangs, and the oldest SDKs wait for ever.
TIMEOUT_SECONDS = 10
# Fewer waiting envelopes count as an empty queue: the SDK's own reports wait there too.
_BACKLOG = 10
# Items of an envelope without texts of the app: sessions and counts.
_COUNTS = frozenset(("session", "sessions", "client_report", "check_in", "statsd"))
# The transaction of an event that the runner itself captures.
transaction: ContextVar[str] = ContextVar("transaction", default="")


class Hold:
    """Context manager: holds back the events of its context until they are released, and drops those that never are.

    An app without a lifespan may raise at the question, and its SDK reports that at every start.

    Attributes:
        moment: the transaction of events that have none: "startup", "shutdown", or "".
    """

    def __init__(self) -> None:
        self.moment = ""
        self._held: list[Callable[[], object]] | None = []

    def __enter__(self) -> "Hold":
        self._token = holding.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        holding.reset(self._token)
        self._held = None

    def release(self) -> None:
        """Send what was held back, and hold nothing any more."""
        held, self._held = self._held or [], None
        for send in held:
            send()

    def keep(self, send: Callable[[], object]) -> bool:
        """Return whether the call is held back."""
        if self._held is None:
            return False
        self._held.append(send)
        return True


holding: ContextVar[Hold | None] = ContextVar("holding", default=None)


class Watch:
    """Watches one transport.

    Attributes:
        place: the tracker's host and port, and the proxy that leads there.
        hint: what to do if the tracker is not reached.
        traceable: whether the outcome of an event can be seen.
        release: of the last event; "" if that had none.
        clock_offset: the tracker's clock minus ours, in seconds, at its last answer.
        proof: the id of the last event that the gate sent.
    """

    def __init__(self, transport: Any, sdk: str, dsn_name: str, bodies: bool) -> None:
        self._envelope, self._urllib3 = import_module(f"{sdk}.envelope"), import_module(f"{sdk}.transport").urllib3
        self._bodies = bodies
        self._secret = str((transport.options or {}).get("dsn") or "")
        self._lock = threading.Lock()
        self._awaited: dict[str, Future[Outcome]] = {}
        self._outcome: Outcome = ""
        self._accepted = 0
        self._environment: dict[str, str] = {}
        self._redactor: Redactor
        self.release: str | None = None
        self.clock_offset: float | None = None
        self.proof: str | None = None
        # SENTRY_PRINT_ENVELOPES puts a transport that prints before the one that sends.
        sender = vars(transport).get("_inner", transport)
        self.traceable = hasattr(sender, "_worker") and hasattr(getattr(sender, "_pool", None), "urlopen")
        if self.traceable:
            self._worker = sender._worker
            proxy_note, self.hint = self._describe_proxy(sender)
            self.place = f"{sender.parsed_dsn.host}:{sender.parsed_dsn.port}{proxy_note}"
            self._send, sender._send_envelope = sender._send_envelope, self._send_envelope
            if hasattr(sender, "_send_event"):
                self._send_to_store, sender._send_event = sender._send_event, self._send_event
            self._ask, sender._pool.request = sender._pool.request, self._request
        else:
            self.place, self.hint = "(unknown)", ""
        self.deliveries = Deliveries(self.place, dsn_name)
        transport.booty_watch = self
        self._capture, transport.capture_envelope = transport.capture_envelope, self._capture_envelope
        if hasattr(transport, "capture_event"):
            self._capture_to_store, transport.capture_event = transport.capture_event, self._capture_event

    @property
    def waiting(self) -> bool:
        """Whether events wait to be sent."""
        return self.traceable and self._worker._queue.unfinished_tasks > 0

    @property
    def accepted(self) -> int:
        """How many events the tracker has accepted."""
        return self._accepted

    def outcome_of(self, event_id: str) -> "Future[Outcome]":
        """Return a future for the outcome of an event that will be captured under this id."""
        with self._lock:
            return self._awaited.setdefault(event_id, Future())

    def _describe_proxy(self, sender: Any) -> tuple[str, str]:
        """Return a note that names the proxy by host and port, and a hint how to set one if there is none.

        Also give the pool the proxy's user and password, which the SDK does not take from the URL.
        """
        scheme, proxies = sender.parsed_dsn.scheme, getproxies()
        variable = f"{(scheme if scheme in proxies else 'http').upper()}_PROXY"
        if proxy := getattr(sender._pool, "proxy", None):
            if proxy.auth:
                login = self._urllib3.util.make_headers(proxy_basic_auth=unquote(proxy.auth))
                sender._pool.proxy_headers.update(login)
            given = any(sender.options.get(f"{name}_proxy") for name in ("http", "https"))
            return f" (by the proxy {proxy.host}:{proxy.port} of {'the app' if given else variable})", ""
        if hasattr(sender._pool, "proxy_url") or sender._in_no_proxy(sender.parsed_dsn):
            return "", ""
        if variable.removesuffix("_PROXY").lower() in proxies:
            return f" (not by the SOCKS proxy of {variable}, since the app does not depend on PySocks)", ""
        return "", f"; if only a proxy leads there, set {scheme.upper()}_PROXY"

    def _clean(self, event: Event) -> Event:
        event, hold, request = {**event, **labels()}, holding.get(), current_request.get()
        own = event.get("transaction") or (hold.moment if hold else "")
        if name := transaction.get() or own or os.environ.get("BOOTY_PROCESS"):
            event |= {"transaction": name}
        headers = frozenset(name.strip().lower() for name in current().booty_telemetry_headers.split(","))
        return clean(event, self._redactor_of_now(), headers, request and request(), self._bodies)

    def _redactor_of_now(self) -> Redactor:
        if self._environment != os.environ:  # the app may have loaded further secrets into it
            self._environment, self._redactor = dict(os.environ), redact.of_environment(self._secret)
        return self._redactor

    def _capture_event(self, event: Event) -> None:
        try:
            event = self._clean(event)
        except Exception as error:
            log.warning("an error was not reported, since it could not be redacted: %r", type(error))
            return
        self._submit(partial(self._capture_to_store, event), event)

    def _capture_envelope(self, envelope: Any) -> None:
        event = None
        try:
            for item in envelope.items:
                if item.type in {"event", "transaction"}:
                    event = self._clean(item.payload.json)
                    item.payload = self._envelope.PayloadRef(json=event)
                elif item.type not in _COUNTS and getattr(item.payload, "json", None):
                    item.payload = self._envelope.PayloadRef(json=self._redactor_of_now().value(item.payload.json))
        except Exception as error:
            log.warning("an error was not reported, since it could not be redacted: %r", type(error))
            return
        if event and isinstance(trace := envelope.headers.get("trace"), dict):
            trace |= {name: event[name] for name in ("release", "environment") if name in trace and name in event}
        self._submit(partial(self._capture, envelope), envelope.get_event())

    def _submit(self, capture: Callable[[], object], event: Event | None) -> None:
        if (hold := holding.get()) and hold.keep(partial(self._submit, capture, event)):
            return
        if event and self.traceable and self._worker._queue.full():
            self._conclude(event, "the queue is full")
        capture()

    def _send_event(self, event: Event) -> None:
        if (size := size_of(event)) > EVENT_BYTES:
            event = shorten(event, size)
        self._record(self._send_to_store, event, event)

    def _send_envelope(self, envelope: Any) -> None:
        event = envelope.get_event()
        for item in envelope.items:
            # Measured in this thread, which serializes the event anyway and keeps the bytes.
            if event and item.get_event() is event and (size := len(item.get_bytes())) > EVENT_BYTES:
                item.payload = self._envelope.PayloadRef(json=shorten(event, size))
        self._record(self._send, envelope, event)

    def _record(self, send: Callable[[Any], object], item: Any, event: Event | None) -> None:
        self._outcome = RATE_LIMITED  # stays so if the SDK makes no request because of an earlier 429
        try:
            send(item)
        except Exception as error:
            self._outcome = describe_error(error)
            raise
        finally:
            if event:
                self._conclude(event, self._outcome)

    def _request(self, method: str, url: str, **arguments: Any) -> Any:
        # Redirects are not followed: one could lead to a login page that answers 200.
        ask = partial(
            self._ask, method, url, **{**arguments, "retries": False, "redirect": False, "timeout": TIMEOUT_SECONDS}
        )
        try:
            response = ask()
        except self._urllib3.exceptions.ProtocolError:
            response = ask()  # the tracker had closed the kept connection; it stores an event id only once
        self._outcome = response.status
        if date := parsedate_tz(response.headers.get("date", "")):
            self.clock_offset = mktime_tz(date) - time.time()
        return response

    def _conclude(self, event: Mapping[str, Any], outcome: Outcome) -> None:
        self.release = str(event.get("release") or "")
        drained = self._worker._queue.unfinished_tasks < _BACKLOG
        self._accepted += accepted(outcome)
        with self._lock:
            awaited = self._awaited.pop(str(event.get("event_id")), None)
            if awaited and awaited.set_running_or_notify_cancel():
                awaited.set_result(outcome)
            line = self.deliveries.record(outcome, drained, time.time())
        if line:
            log.warning(line)
