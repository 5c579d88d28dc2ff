"""Return what a watch needs from a host: how many requests it served, and whether its errors arrive."""

from __future__ import annotations

import http.client
import socket
import time
from types import NoneType
from typing import Any

from booty_host import journal
from booty_host.app import App
from booty_host.files import parse_assignments
from booty_host.health import READ, load, within
from booty_host.processes import labels
from booty_host.state import State
from booty_host.systemd import Systemd

# The runner's checks of whether errors reach the tracker with the right time.
CHECKS = ("tracker", "clock")
OLDER = "its release was built by an older Booty, which does not count requests: deploy a newer commit"


def ask_internal(app: App, method: str, path: str, timeout: float) -> dict[str, Any]:
    """Return the JSON object that the service answers on its internal socket.

    Raises:
        OSError: there is no answer.
        http.client.HTTPException: likewise.
        ValueError: the answer is no JSON object, or too long.
    """
    connection = http.client.HTTPConnection("localhost", timeout=timeout)
    try:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(timeout)
        connection.sock.connect(str(app.internal_socket))
        with within(timeout):
            connection.request(method, path)
            answer = load(connection.getresponse().read(READ))
    finally:
        connection.close()
    if not isinstance(answer, dict):
        raise ValueError("it answers with another kind of JSON")
    return answer


# The values that the runner gives in its answers.
NUMBER, TEXT = (int, float, NoneType), (str, NoneType)
KINDS = {
    **{"requests": NUMBER, "lost": (int,), "proof": TEXT, "sampled": NUMBER},
    **{"status": (int, *TEXT), "since": TEXT, "dropped": (int, NoneType)},
}


def values(answer: dict[str, Any], *names: str, **defaults: Any) -> dict[str, Any]:
    """Return fields of an answer of the service.

    Args:
        answer: the answer.
        names: the fields.
        defaults: their values if the answer lacks them; None for other fields.

    Raises:
        TypeError: the runner gives no such value. The app answers in the same process.
    """
    fields = {name: answer.get(name, defaults.get(name)) for name in names}
    for name, value in fields.items():
        if not isinstance(value, KINDS[name]) or (isinstance(value, int | float) and not 0 <= value < 2**63):
            raise TypeError(f"{name} is {value!r:.100}")
    return fields


def observe(app: App, prove: bool, by: str, seconds: int, check: bool) -> dict[str, Any]:
    """Return as `observed` what the service on this host did since its start.

    Args:
        app: the app.
        prove: whether the service sends its tracker an event, by which the watch sees that errors arrive; and whether
            a record of the journal says that a watch begins.
        by: who watches.
        seconds: the longest time that the watch takes; without a result after it, the watch was cut off.
        check: only return what needs no event and no record.

    Returns:
        the `release` and the `environment` of the service, the release that served before as `previous`, its `pid`, the
        time of its start as `since`; the number of `requests` and of `lost` events; the event's id as `proof`, the
        share of errors that are reported as `sampled`; and the `faults`, sentences on why its errors may not arrive.
    """
    properties = "--property=MainPID,ExecMainStartTimestamp"
    unit = parse_assignments(Systemd(app).show(app.service, "--timestamp=unix", properties))
    running = labels(app, pid := int(unit.get("MainPID") or 0))
    observed: dict[str, Any] = {
        "release": running.get("SENTRY_RELEASE", ""),
        "environment": running.get("SENTRY_ENVIRONMENT", ""),
        "pid": pid,
        "previous": next((other for other in State.load(app).served if other != running.get("SENTRY_RELEASE")), ""),
        "since": float(unit.get("ExecMainStartTimestamp", "").lstrip("@") or 0),
        "requests": None,
        "lost": 0,
        "proof": None,
        "sampled": None,
        "faults": [],
    }
    faults = observed["faults"]
    if not running:
        faults.append(f"{app.service} does not run")
        return {"observed": observed}
    try:
        if prove and not check:
            report = ask_internal(app, "POST", "/verify", 30)
            observed |= values(report, "proof", "sampled")
            faults += [
                f"{each['name']}: {each['detail']!s:.2000}"
                for each in report["checks"]
                if each["name"] in CHECKS and not each["ok"]
            ]
            if not observed["proof"]:
                faults.append("it can't report errors: it has no SENTRY_DSN" if "proof" in report else OLDER)
        status = ask_internal(app, "GET", "/status", 10)
        observed |= values(status, "requests", "lost", lost=0)
        if observed["requests"] is None and OLDER not in faults:
            faults.append(OLDER)
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError) as error:
        faults.append(f"its service gives no status: {error or type(error).__name__}")
    if prove and not check:
        until = str(round(time.time() + seconds))
        release = observed["release"]
        journal.log(app, f"{by} {release}", watch="began", release=release, by=by, until=until)
    return {"observed": observed}
