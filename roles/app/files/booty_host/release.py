"""A release on a host: its manifest, its labels, and the difference between what serves and what should."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from booty_host import health, sockets
from booty_host.app import App
from booty_host.files import parse_assignments, read
from booty_host.processes import labels
from booty_host.systemd import Systemd


def manifest(directory: Path) -> dict[str, str]:
    """Return the fields of a staged release's `release.json`; none if the file is missing or damaged."""
    try:
        fields = json.loads(read(directory / "release.json"))
    except (OSError, ValueError):
        return {}
    match fields:
        case {"layer": str(), "python": str()}:
            return dict(fields)
    return {}


def layers_of(fields: dict[str, str]) -> set[str]:
    """Return the layers that a release needs. A manifest from before the runner was a layer names one layer alone."""
    return {fields[layer] for layer in ("layer", "runner") if layer in fields}


def labels_on_disk(app: App) -> dict[str, str]:
    """Return the assignments of release.env; none if the file is missing."""
    return parse_assignments(read(app.release_env))


class Release:
    """The text of release.env for a release, and the texts of the units that belong to it, by their names."""

    def __init__(self, app: App, env: str, units: dict[str, str]) -> None:
        self.app, self.env, self.units = app, env, units
        self.labels = parse_assignments(env)
        self.sha = self.labels.get("SENTRY_RELEASE", "")

    @property
    def address(self) -> tuple[str, int]:
        """The address and port of its socket unit."""
        return sockets.parse_stream(self.units[self.app.socket])

    @property
    def expected(self) -> dict[str, str]:
        """The labels of a main process that serves it: those of release.env, and the hash of the service's unit."""
        unit_hash = re.search(r"BOOTY_UNIT=(\w+)", self.units[self.app.service])
        return {**self.labels, **({"BOOTY_UNIT": unit_hash[1]} if unit_hash else {})}


def unsettled(app: App, systemd: Systemd, release: Release) -> str:
    """Name the first thing that a cutover to a release would still change; "" if the release serves as it should.

    The function looks at what runs. An interrupted deploy leaves no handler behind that would run later.
    """
    socket, service, candidate = systemd.units(app.socket, app.service, app.candidate)
    for name, text in release.units.items():
        # A cutover installs the candidate's unit each time.
        if name != app.candidate and read(app.unit_files / name) != text:
            return f"{app.unit_files / name} differs"
    if labels_on_disk(app) != release.labels:
        return f"{app.release_env} does not name {release.sha}"
    if {socket["UnitFileState"], service["UnitFileState"]} != {"enabled"}:
        return f"{app.socket} and {app.service} are not enabled"
    options = sockets.options(sockets.opened(app, socket)) ^ sockets.options(release.units[app.socket])
    if options or "yes" in {socket["NeedDaemonReload"], service["NeedDaemonReload"]}:
        opened = f"{app.socket} was opened before {', '.join(sorted(options))} changed"
        return opened if options else "systemd has not read the units as they are"
    handover = app.handover.exists()
    if handover or candidate["ActiveState"] not in {"inactive", "failed"}:
        return "a handover was interrupted" if handover else f"{app.candidate} is {candidate['ActiveState']}"
    running = labels(app, int(service["MainPID"]))
    # systemd holds the sockets, so a request to a stopped service would start it.
    return (fault(release, running, health.ask(*release.address)) if running else f"{app.service} does not run") or ""


def fault(release: Release, running: dict[str, str], answer: dict[str, Any]) -> str | None:
    """Return the first difference between the service and a release that it should run; None if there is none.

    Args:
        release: the one that should serve.
        running: the labels that the main process was started with.
        answer: that of /health, on the real socket.
    """
    if difference := differs(release.expected, running):
        return f"the running process's {difference}"
    if answer["status"] != 200:
        return f"/health says {answer['status']}: {answer.get('reason', 'no reason given')}"
    answered = {"SENTRY_RELEASE": answer.get("release"), "SENTRY_ENVIRONMENT": answer.get("environment")}
    for name, value in answered.items():
        if value != release.labels[name]:
            return f"/health answers {value} for {name}, not {release.labels[name]}"
    return None


def differs(expected: dict[str, str], running: dict[str, str]) -> str | None:
    """Name the first label that differs; None if all are equal."""
    for name, value in expected.items():
        if running.get(name) != value:
            return f"{name} is {running.get(name)}, not {value}"
    return None
