"""Events: what is sent of an error. Redaction, source lines, the request's route and id, and the limit of size."""

import json
import linecache
import re
import uuid
from collections.abc import Callable, Collection
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from booty_runner.redact import Redactor

# An event as JSON, as the SDK has serialized it.
Event = dict[str, Any]

# Larger events are shortened. Sentry and Bugsink refuse events over 1 MB; Sentry also refuses compressed events over
# 200 KB (docs.sentry.io, "Size Limits").
EVENT_BYTES = 200_000
# Maximum lengths of texts and lists, tried in this order. Sentry itself cuts texts after 8192 characters.
_SHORTER = ((8192, 100), (2000, 40), (500, 15), (200, 5))
# If none of these is enough, the event keeps these keys only.
_ESSENTIAL = frozenset(
    ("exception", "logentry", "message", "logger", "transaction", "transaction_info", "fingerprint", "tags", "request")
)

# Redaction skips these keys: an id or a label that contains a short secret must reach the tracker unchanged.
_LABELS = frozenset(
    ("event_id", "release", "environment", "timestamp", "level", "platform", "sdk", "modules", "server_name")
)
_CONTEXTS = ("trace", "runtime")
_PROTOCOL = frozenset(("exception", "threads", "breadcrumbs", "request", "logentry", "transaction_info"))
# Source lines before and after the one that was running; the SDK sends as many.
_LINES = 5
_LINE_LENGTH = 500
_TRACE_ID = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True)
class Request:
    """The request in which an event is captured.

    Attributes:
        id: the request's id.
        route: its full route, with the prefixes of its routers, if known.
        method: its HTTP method, if known.
        url: its URL; only the origin is sent.
    """

    id: str
    route: str | None = None
    method: str | None = None
    url: str = ""


# Returns the request that this context answers.
current_request: ContextVar[Callable[[], Request] | None] = ContextVar("current_request", default=None)


def clean(
    event: Event,
    redactor: Redactor,
    headers: Collection[str] = (),
    request: Request | None = None,
    bodies: bool = False,
) -> Event:
    """Return a redacted copy of an event, with source lines and the request's id and route.

    Args:
        event: serialized by the SDK; it is not changed.
        redactor: replaces secrets, except in labels, ids and package names.
        headers: names, in lower case, of the request headers to send.
        request: the request in which the event was captured.
        bodies: whether to send the request's body.
    """
    if "breadcrumbs" in event:
        crumbs = [kept for crumb in event["breadcrumbs"].get("values", ()) if (kept := _crumb(crumb))]
        event = {**event, "breadcrumbs": {"values": crumbs}}
    sent = {
        # Under a protocol key, the inner keys are the protocol's too, and not redacted.
        key: value if key in _LABELS else redactor.value(value, keys=key not in _PROTOCOL)
        for key, value in event.items()
        if key != "_meta"
    }
    if "contexts" in sent:
        sent["contexts"] |= {name: event["contexts"][name] for name in _CONTEXTS if name in event["contexts"]}
    if not sent.get("release"):
        sent.pop("release", None)
    if "extra" in sent:
        sent["extra"].pop("sys.argv", None)  # may hold secrets
    if event.get("transaction") or request:
        sent |= _transaction(event, redactor, request.route if request else None)
    if "request" in sent:
        origin = redactor.known(_origin(event["request"].get("url")))
        sent["request"] = _request(sent["request"], origin + _path(sent), headers, bodies)
    elif request and request.method:
        url = redactor.known(_origin(request.url)) + _path(sent)
        sent["request"] = {"method": request.method, "url": url}
    if request:
        sent["tags"] = {**sent.get("tags", {}), "request_id": request.id}
        if event.get("type") != "transaction":
            # One trace per request. Without tracing, the SDK gives the events of all requests the same trace.
            trace = request.id if _TRACE_ID.fullmatch(request.id) else uuid.uuid5(uuid.NAMESPACE_URL, request.id).hex
            sent["contexts"] = {**sent.get("contexts", {}), "trace": {"trace_id": trace, "span_id": trace[:16]}}
    for kind in ("exception", "threads"):
        for value in sent.get(kind, {}).get("values", ()):
            for frame in (value.get("stacktrace") or {}).get("frames", ()):
                frame.update(_source_lines(frame, redactor))
    return sent


def _transaction(event: Event, redactor: Redactor, route: str | None) -> Event:
    source = event.get("transaction_info", {}).get("source") if event.get("transaction") else "url"
    if route and source in {"route", "url"}:
        return {"transaction": route, "transaction_info": {"source": "route"}}
    # Without a route the SDK names the transaction after the path, which may contain secrets.
    return {"transaction": "(no route)" if source == "url" else redactor.known(event["transaction"])}


def _request(request: dict[str, Any], url: str, headers: Collection[str], bodies: bool) -> dict[str, Any]:
    """Return a request's method, URL and allowed headers: no path, query, cookies or client address."""
    allowed = {name: value for name, value in (request.get("headers") or {}).items() if name.lower() in headers}
    body = {"data": request["data"]} if bodies and "data" in request else {}
    return {"method": request.get("method"), "url": url, "headers": allowed, **body}


def _path(event: Event) -> str:
    """Return the route that the transaction names, or "" if it names a function, as Flask's does."""
    name = str(event.get("transaction") or "")
    return name if name.startswith(("/", "(no route)")) else ""


def shorten(event: Event, size: int) -> Event:
    """Return a copy of a too large event without the middle of long texts and lists.

    Args:
        event: from `clean`: if a secret were cut first, redaction would miss its halves.
        size: its size in bytes as JSON.
    """
    essential = {key: value for key, value in event.items() if key in _LABELS | _ESSENTIAL}
    sent: Event = {}
    for part, length, many in [*((event, *limits) for limits in _SHORTER), (essential, *_SHORTER[-1])]:
        sent = {key: value if key in _LABELS else _shortened(value, length, many) for key, value in part.items()}
        sent["extra"] = {**sent.get("extra", {}), "shortened": f"from {size:,} bytes"}
        if size_of(sent) <= EVENT_BYTES:
            break
    return sent


def size_of(event: Event) -> int:
    """Return the bytes of an event as JSON, in the form in which the SDK sends it."""
    return len(json.dumps(event, separators=(",", ":")))


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


def _crumb(crumb: dict[str, Any]) -> dict[str, Any] | None:
    """Return a breadcrumb as it is sent: of an outgoing request no path or query, of a subprocess nothing."""
    if crumb.get("category") == "subprocess":
        return None
    if crumb.get("type") != "http":
        return crumb
    data = crumb.get("data") or {}
    kept = {key: value for key, value in data.items() if key in {"http.method", "method", "status_code", "reason"}}
    return {**crumb, "data": {**kept, "url": _origin(data.get("url"))}}
