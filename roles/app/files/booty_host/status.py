"""Tell in one answer what a person wants to know of a host. Changes nothing, and starts nothing."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from booty_host import host

INTERNAL = Path("/run/booty/internal.sock")
# What a record of booty-deploy says, by the name that it has in the answer.
FIELDS = {
    "result": "BOOTY_RESULT",
    "release": "BOOTY_RELEASE",
    "from": "BOOTY_FROM",
    "by": "BOOTY_BY",
    "seconds": "BOOTY_SECONDS",
    "message": "MESSAGE",
}


def status(pointer: str, units: dict[str, str], check: bool) -> dict[str, Any]:
    """Return everything as `status`.

    Args:
        pointer: the text of the release.env that is wanted.
        units: the text of each unit that is wanted; without any, `drift` is not looked for.
        check: makes no difference, since nothing is changed.
    """
    service, candidate = shown(host.SERVICE), shown(host.CANDIDATE)
    running = host.labels(int(service.get("MainPID") or 0))
    told = host.pointer()
    serving = running.get("SENTRY_RELEASE")
    damaged = [
        f"{path} has no release.json that can be read"
        for path in host.directories(host.RELEASES)
        if not host.manifest(path)
    ]
    try:
        served = host.State.load().served
    except host.HostError as error:
        served, damaged = [], [str(error), *damaged]
    found = {
        "ready": host.RELEASES.is_dir() and host.ETC.is_dir(),
        "service": service.get("ActiveState", "unknown"),
        # What it says of itself, and how often in a row systemd had to start it again.
        "says": service.get("StatusText", ""),
        "restarts": int(service.get("NRestarts") or 0),
        "since": since(service.get("ActiveEnterTimestamp", "")) if running else None,
        "memory": identity(running),
        "disk": identity(told),
        # Asking what does not run would start it: the sockets are systemd's.
        "health": answered() if running else None,
        "damaged": damaged,
        "tracker": tracker() if running else None,
        "previous": next((one for one in served if one != serving and (host.RELEASES / one).is_dir()), None),
        "candidate": None
        if candidate.get("ActiveState") in {"inactive", "failed"}
        else identity(host.labels(int(candidate.get("MainPID") or 0)))
        or {"release": host.parse_assignments(host.read(host.CANDIDATE_POINTER)).get("SENTRY_RELEASE")},
        "lease": host.lease(host.read(Path("/proc/locks"))),
        "free": free(host.OPT if host.OPT.is_dir() else Path("/")),
        "last": last(host.run(*JOURNAL).stdout),
        "drift": drift(host.Release(pointer, units)) if units else None,
    }
    return {"status": found}


def shown(name: str) -> dict[str, str]:
    """Return what systemd says of a unit, with its times as seconds since 1970."""
    properties = "ActiveState,MainPID,ActiveEnterTimestamp,StatusText,NRestarts"
    return host.parse_assignments(host.shown(name, "--timestamp=unix", f"--property={properties}"))


def since(timestamp: str) -> str | None:
    """Return systemd's `@seconds` as a time in UTC; None when there is none."""
    return moment(int(timestamp[1:])) if timestamp[1:].isdecimal() else None


def moment(seconds: float) -> str:
    """Return a time in UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def identity(labels: dict[str, str]) -> dict[str, str | None] | None:
    """Return the release and the environment that labels name; None when there are no labels."""
    if not labels:
        return None
    return {"release": labels.get("SENTRY_RELEASE"), "environment": labels.get("SENTRY_ENVIRONMENT")}


def answered() -> dict[str, Any]:
    """Return what the real socket answers: its `status`, `release`, `environment`, and the `reason` of a refusal."""
    told = host.installed_health()
    return {name: told[name] for name in ("status", "release", "environment", "reason") if name in told}


def tracker() -> dict[str, Any] | None:
    """Return what became of the last error, as the service tells root: `status`, `since` and `dropped`.

    None when no errors are reported at all; a `status` in words says why there is no answer.
    """
    connection = http.client.HTTPConnection("localhost", timeout=5)
    try:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(5)
        connection.sock.connect(str(INTERNAL))
        connection.request("GET", "/status")
        told = json.loads(connection.getresponse().read())["telemetry"]
        return told and {name: told.get(name) for name in ("status", "since", "dropped")}
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError) as error:
        return {"status": f"the service does not say: {error or type(error).__name__}", "since": None, "dropped": None}
    finally:
        connection.close()


def free(path: Path) -> dict[str, float]:
    """Return how much of the disk that holds the releases is free: `bytes`, and the `share` of all of it."""
    usage = shutil.disk_usage(path)
    return {"bytes": usage.free, "share": round(usage.free / usage.total, 3)}


JOURNAL = (
    *("journalctl", "--identifier=booty-deploy", "--quiet", "--no-pager", "--reverse", "--lines=100"),
    *("--output=json", f"--output-fields={','.join(FIELDS.values())}"),
)


def last(journal: str) -> dict[str, Any] | None:
    """Return the last record of how a deploy, a rollback or a refusal ended, and `at` what time; None without one.

    Args:
        journal: what booty-deploy left, the newest first, as lines of JSON.
    """
    records = [json.loads(line) for line in journal.splitlines()]
    ends = (record for record in records if isinstance(record.get("BOOTY_RESULT"), str))
    record = next(ends, records[0] if records else None)
    if record is None:
        return None
    # The journal writes what is no text as a list of bytes.
    told = {name: record[field] for name, field in FIELDS.items() if isinstance(record.get(field), str)}
    return {**told, "at": moment(int(record["__REALTIME_TIMESTAMP"]) / 1_000_000)}


def drift(wanted: host.Release) -> list[str]:
    """Name what a deploy of a release would change on the host; nothing when it would do nothing."""
    now = host.pointer()
    names = {"SENTRY_RELEASE": "release", "SENTRY_ENVIRONMENT": "environment"}
    found = [
        f"{word} {now.get(name, 'none')} → {wanted.labels[name]}"
        for name, word in names.items()
        if now.get(name) != wanted.labels[name]
    ]
    for name, text in wanted.units.items():
        if (installed := host.read(host.UNITS / name)) != text and name != host.CANDIDATE:
            found.append(f"{name} {'differs' if installed else 'is not there'}")
    return found or [left for left in [host.unsettled(wanted)] if left]
