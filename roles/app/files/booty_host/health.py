"""Ask a service over HTTP whether it is healthy, and which process answers."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# How much of an answer's body is read for its reason, in bytes.
READ = 65536
# How long an answer may take, in seconds.
SECONDS = 5.0


def ask_json(address: str, port: int) -> dict[str, Any]:
    """Ask `GET /health`, whose JSON has the release: the question to a release of contract 1 or 2.

    Returns:
        the HTTP `status` (0 without an answer), the `release` and the `environment` in the answer, None if it has none;
        and the `reason` why the service is not healthy, "" if it is.
    """
    answer = get(address, port, "/health", "localhost")
    fields, status = parsed(answer["body"]), answer["status"]
    reason = answer["reason"] or ("" if status == 200 else f"/health says {status}: {explained(answer['body'])}")
    if status == 200 and not fields:
        reason = "/health says 200, but the answer is not a JSON object"
    labels = {name: str(fields[name]) if fields.get(name) is not None else None for name in ("release", "environment")}
    return {"status": status, "reason": reason, **labels}


def ask_process(address: str, port: int, path: str, host: str, invocation: str, pid: int) -> dict[str, Any]:
    """Ask the health path, and the runner which process answers.

    Args:
        address: where the socket unit listens.
        port: likewise.
        path: "" if no health path is set: then the question is `GET /`, and any answer below 500 will do.
        host: the Host header.
        invocation: the INVOCATION_ID of the process that should answer; only that process names itself.
        pid: its PID; of several workers, that of their supervisor.

    Returns:
        as `ask_json`, without the `environment`; `release` is None if another process answers.
    """
    answer = get(address, port, path or "/", host, invocation)
    status, headers = answer["status"], answer["headers"]
    reason = answer["reason"] or refusal(status, path, host, headers.get("Location", ""), answer["body"])
    release = headers.get("X-Booty-Release") if headers.get("X-Booty-Pid") == str(pid) else None
    if status and not release:
        reason = f"GET {path or '/'} is answered by another process than the service's (PID {pid})"
    return {"status": status, "reason": reason, "release": release}


@contextmanager
def within(seconds: float, late: str = "timed out") -> Iterator[None]:
    """Raise TimeoutError if the block takes longer. The timeout of a socket bounds each part of an answer alone.

    Args:
        seconds: how long the block may take.
        late: the message of the exception.
    """

    def end(*_: object) -> None:
        raise TimeoutError(late)

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def load(text: bytes) -> Any:
    """Return what JSON of an app holds; raise ValueError if it is none that can be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deep") from None


def get(address: str, port: int, path: str, host: str, invocation: str = "") -> dict[str, Any]:
    """Return the `status`, `headers` and `body` of an answer; `reason` says why there is none, and the status is 0.

    A wildcard for an address stands for the loopback.
    """
    # Loading it takes a third of this program's time to load, and many calls ask no service.
    import http.client  # noqa: PLC0415

    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    connection = http.client.HTTPConnection(reachable, port, timeout=SECONDS)
    headers = {"Host": host, "Connection": "close"}
    if invocation:
        # An app behind a proxy may redirect all HTTP to HTTPS; the runner asks the candidate in the same way.
        headers |= {"X-Booty-Ask": invocation, "X-Forwarded-Proto": "https", "User-Agent": "booty-health"}
    try:
        with within(SECONDS):
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            # The first page of an app may be a stream that never ends; only the reason of an error is read there.
            body = response.read(READ) if not invocation or response.status >= 400 else b""
    # ValueError: the process has changed its environment, where the path and the headers come from.
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = f"no answer on {address}:{port}: {error or type(error).__name__}"
        return {"status": 0, "reason": reason, "headers": {}, "body": b""}
    finally:
        connection.close()
    return {"status": response.status, "reason": "", "headers": response.headers, "body": body}


def parsed(body: bytes) -> dict[str, Any]:
    """Return the fields of a body that is a JSON object; none of another body."""
    try:
        fields = load(body)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def explained(body: bytes) -> str:
    """Return the reason or the detail that a JSON body gives."""
    fields = parsed(body)
    return str(fields.get("reason") or fields.get("detail") or "no reason given")


def refusal(status: int, path: str, host: str, location: str, body: bytes) -> str:
    """Return why a status is no sign of health, with the next step; "" if it is one.

    Args:
        status: the answer's.
        path: as in `ask_process`.
        host: the Host header of the question.
        location: where a redirect leads.
        body: the answer's, or the beginning of it.
    """
    if 200 <= status < 300 or (not path and 0 < status < 500):
        return ""
    says = f"GET {path or '/'} answers {status}"
    if status >= 500:
        return f"{says}: {explained(body)}"
    if location.startswith("https:"):
        return (
            f"{says} and leads to {location}: the app wants HTTPS and does not take X-Forwarded-Proto for it. Set"
            " app_trusted_proxies and let the app trust that header (Django: SECURE_PROXY_SSL_HEADER), or exempt this"
            " path"
        )
    if 300 <= status < 400:
        return f"{says} and leads to {location or 'nowhere'}: name a path that answers 2xx itself: app_health_path"
    steps = {
        400: f" to the Host header {host}: set app_health_host to a host that the app accepts (Django: ALLOWED_HOSTS)",
        401: ": it wants a login. Name a path that answers without one: app_health_path",
        403: ": it wants a login. Name a path that answers without one: app_health_path",
        404: ": the app has no such path. Name one that it has: app_health_path",
        405: ": the path does not take GET. Name one that does: app_health_path",
    }
    return f"{says}{steps.get(status, ': name a path that answers 2xx: app_health_path')}"
