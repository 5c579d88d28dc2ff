"""A release on a host: its manifest, its labels, and the difference between what serves and what should."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from booty_host import health, secrets, sockets
from booty_host.app import App
from booty_host.files import parse_pointer, read
from booty_host.processes import QUESTION, labels
from booty_host.systemd import Systemd

# A release from this number on tells which process answers; see `contract` in its manifest.
NAMES_ITSELF = 3


def manifest(directory: Path) -> dict[str, Any]:
    """Return the fields of a staged release's `release.json`; none if the file is missing or damaged."""
    try:
        fields = json.loads(read(directory / "release.json"))
    except (OSError, ValueError):
        return {}
    match fields:
        case {"layer": str(), "python": str()}:
            return dict(fields)
    return {}


def directory_of(app: App, pid: int) -> Path:
    """Return the directory of the release that a process names; whatever it names, root reads nothing elsewhere."""
    return app.releases / Path(labels(app, pid).get("BOOTY_RELEASE_DIR", "")).name


def layers_of(fields: dict[str, Any]) -> set[str]:
    """Return the layers that a release needs. A manifest from before the runner was a layer names one layer alone."""
    return {fields[layer] for layer in ("layer", "runner") if layer in fields}


def labels_on_disk(app: App) -> dict[str, str]:
    """Return the assignments of release.env; none if the file is missing."""
    return parse_pointer(read(app.release_env))


def static_folders(app: App, sha: str) -> dict[str, str]:
    """Return the folders of a release that the proxy serves, relative to its tree, by their prefix in URLs."""
    fields = manifest(app.releases / sha)
    return {prefix: f"{fields['path']}/{folder}" for prefix, folder in fields.get("static", {}).items()}


def shown(app: App) -> str:
    """Return the release whose static files the proxy serves; "" for none."""
    try:
        return (app.static / "current").readlink().name.partition(".")[0]
    except OSError:
        return ""


class Release:
    """The text of release.env for a release, and the texts of the units that belong to it, by their names."""

    def __init__(self, app: App, env: str, units: dict[str, str]) -> None:
        self.app, self.env, self.units = app, env, units
        self.labels = parse_pointer(env)
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


def unfit_for_proxy(app: App, systemd: Systemd, release: Release) -> str:
    """Say what is wrong with the proxy's socket of a release; "" if all is well, or it has no proxy.

    Only a release of contract 3 is ever given the socket: an older one would serve its internal app there.
    """
    expected, installed = release.units.get(app.http_socket, ""), read(app.unit_files / app.http_socket)
    if expected != installed:
        return f"{app.http_socket} {'differs' if expected and installed else 'is new' if expected else 'is left over'}"
    if expected:
        state = systemd.unit(app.http_socket)
        if (state["ActiveState"], state["UnitFileState"]) != ("active", "enabled"):
            return f"{app.http_socket} is {state['ActiveState']} and {state['UnitFileState'] or 'not enabled'}"
    return ""


def other_files(app: App, release: Release) -> str:
    """Say whose static files the proxy serves, if not a release's own; "" if all is well, or it has no proxy."""
    wanted = release.sha if static_folders(app, release.sha) else ""
    if app.http_socket in release.units and (sha := shown(app)) != wanted:
        return f"the proxy serves the static files of {sha or 'no release'}"
    return ""


def unsettled(app: App, systemd: Systemd, release: Release, times: int = 1) -> str:
    """Name the first thing that a cutover to a release would still change at the web service; "" if it serves.

    The function looks at what runs. An interrupted deploy leaves no handler behind that would run later.

    Args:
        app: the app.
        systemd: the host's.
        release: the release that should serve.
        times: how many times in a row its process must answer.
    """
    socket, service, candidate = systemd.units(app.socket, app.service, app.candidate)
    for name in (name for name in app.units if name in release.units):
        # A cutover installs the candidate's unit each time.
        if name != app.candidate and read(app.unit_files / name) != release.units[name]:
            return f"{app.unit_files / name} differs"
    if labels_on_disk(app) != release.labels:
        return f"{app.release_env} does not name {release.sha}, or has other settings"
    enabled = {socket["UnitFileState"], service["UnitFileState"]} == {"enabled"}
    disabled = "" if enabled else f"{app.socket} and {app.service} are not enabled"
    if problem := disabled or unfit_for_proxy(app, systemd, release) or other_files(app, release):
        return problem
    options = sockets.options(sockets.opened(app, socket)) ^ sockets.options(release.units[app.socket])
    if options or "yes" in {socket["NeedDaemonReload"], service["NeedDaemonReload"]}:
        opened = f"{app.socket} was opened before {', '.join(sorted(options))} changed"
        return opened if options else "systemd has not read the units as they are"
    handover = app.handover.exists()
    if handover or candidate["ActiveState"] not in {"inactive", "failed"}:
        return "a handover was interrupted" if handover else f"{app.candidate} is {candidate['ActiveState']}"
    return next((problem for _ in range(times) if (problem := fault(release, int(service["MainPID"]), ask))), "")


def fault(release: Release, pid: int, how: Callable[[App, tuple[str, int], int], dict[str, Any]]) -> str:
    """Return the first difference between a main process and the release that it should serve; "" if there is none.

    Args:
        release: the one that should serve.
        pid: the main process.
        how: `ask` if no other process may answer, or `ask_itself`.
    """
    app = release.app
    # systemd holds the sockets, so a request to a stopped service would start it.
    if not (running := labels(app, pid)):
        return f"{app.service} does not run"
    return judge(release, running, how(app, release.address, pid))


def question(app: App, pid: int) -> tuple[str, str, str] | None:
    """Return the health path, the Host header and the INVOCATION_ID to ask a main process with.

    A path or host of the unit, which has it from the inventory, comes before that of the release's commit. None stands
    for a release that is asked `GET /health`.
    """
    fields = manifest(directory_of(app, pid))
    if int(fields.get("contract", 1)) < NAMES_ITSELF:
        return None
    of_unit, of_commit = labels(app, pid, QUESTION), fields.get("health", {})
    path, host = (of_unit.get(f"BOOTY_HEALTH_{part.upper()}") or of_commit.get(part, "") for part in ("path", "host"))
    return path, host or "localhost", of_unit.get("INVOCATION_ID", "")


def ask(app: App, address: tuple[str, int], pid: int) -> dict[str, Any]:
    """Ask a main process on the real socket, as its release wants to be asked; the answer is that of `health`."""
    asked = question(app, pid)
    answer = health.ask_process(*address, *asked, pid) if asked else health.ask_json(*address)
    if answer["reason"]:  # the app's own words may hold a secret
        answer["reason"] = secrets.filtered(answer["reason"], secrets.hidden(app))
    return answer


def ask_itself(app: App, address: tuple[str, int], pid: int) -> dict[str, Any]:
    """Ask a main process as `ask` does, until it answers itself: a candidate beside it accepts there as well."""
    for _ in range(20):
        answer = ask(app, address, pid)
        if answer["release"] or not answer["status"]:
            break
    return answer


def ask_installed(app: App, pid: int) -> dict[str, Any]:
    """Ask a main process itself where the installed socket unit listens; the answer is that of `ask`."""
    path = app.unit_files / app.socket
    try:
        address = sockets.parse_stream(read(path))
    except ValueError as error:
        return {"status": 0, "reason": f"{path}: {error}"}
    return ask_itself(app, address, pid)


def judge(release: Release, running: dict[str, str], answer: dict[str, Any]) -> str:
    """Return the first difference between a main process and the release that it should serve; "" if there is none.

    Args:
        release: the one that should serve.
        running: the labels that the main process was started with.
        answer: that of `ask`.
    """
    if difference := differs(release.expected, running):
        return f"the running process's {difference}"
    if answer["reason"]:
        return str(answer["reason"])
    for name, part in (("SENTRY_RELEASE", "release"), ("SENTRY_ENVIRONMENT", "environment")):
        if part in answer and answer[part] != release.labels[name]:
            return f"the service answers {answer[part]} for {name}, not {release.labels[name]}"
    return ""


def differs(expected: dict[str, str], running: dict[str, str]) -> str | None:
    """Name the first label that differs; None if all are equal."""
    for name, value in expected.items():
        if running.get(name) != value:
            return f"{name} is {running.get(name)!s:.256}, not {value}"
    return None
