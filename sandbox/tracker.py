"""The local tracker: a real Bugsink, which speaks Sentry's protocol, and access to the events that it received.

Bugsink is used for development only and not distributed with Booty (its licence is PolyForm Shield).
"""

import hashlib
import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.machine import (
    CHECKOUT,
    SandboxError,
    build_once,
    cache,
    kill,
    locked,
    processes,
    run,
    say,
    spawn,
)

_LOCK = CHECKOUT / "requirements/tracker.txt"
_SERVER = CHECKOUT / "sandbox/tracker_server.py"
# Without the environment's proxy, which can't reach this machine's addresses.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Event:
    """An event as the tracker stored it."""

    id: str
    """The tracker's own id."""
    event_id: str
    """The id that the SDK returned, without dashes."""
    url: str
    """The event's page in the tracker."""
    data: dict[str, Any]
    """The event as the SDK sent it: `release`, `environment`, `transaction`, `exception` …"""


@dataclass(frozen=True)
class Tracker:
    """A running tracker."""

    directory: Path
    url: str
    dsn: str
    token: str
    user: str
    password: str
    project: int

    def events(self) -> list[dict[str, Any]]:
        """List the received events, oldest first; pass the `id` of one to `event`."""
        issues = self._list(f"/api/canonical/0/issues/?project={self.project}")
        events = [e for i in issues for e in self._list(f"/api/canonical/0/events/?issue={i['id']}&order=asc")]
        return sorted(events, key=lambda event: str(event["ingested_at"]))

    def event(self, id: str) -> Event:
        """Return an event by the tracker's own id."""
        event = self._get(f"{self.url}/api/canonical/0/events/{id}/")
        page = f"{self.url}/issues/issue/{event['issue']}/event/{event['id']}/"
        return Event(event["id"], event["event_id"].replace("-", ""), page, event["data"])

    def wait_for_event(
        self,
        predicate: Callable[[dict[str, Any]], bool] = lambda data: True,
        timeout: float = 10,
        unless: Collection[str] = (),
    ) -> Event:
        """Wait for an event whose `data` the predicate accepts, and return the first one.

        Args:
            predicate: returns whether an event's `data` is the expected one.
            timeout: the limit in seconds.
            unless: the tracker's ids of earlier events, which are ignored.

        Raises:
            TimeoutError: no such event arrived in time; the message lists the others.
        """
        others: dict[str, Event] = {}
        deadline = time.monotonic() + timeout
        while True:
            for id in (entry["id"] for entry in self.events()):
                if id not in others and id not in unless:
                    others[id] = self.event(id)
                    if predicate(others[id].data):
                        return others[id]
            if time.monotonic() > deadline:
                arrived = [(event.data.get("transaction"), event.data.get("release")) for event in others.values()]
                raise TimeoutError(f"no such event within {timeout} s; (transaction, release) of others: {arrived}")
            time.sleep(0.1)

    def _list(self, path: str) -> list[dict[str, Any]]:
        results, page = [], f"{self.url}{path}"
        while page:
            answer = self._get(page)
            results += answer["results"]
            page = answer["next"]
        return results

    def _get(self, url: str) -> Any:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self.token}"})
        with _OPENER.open(request, timeout=10) as response:
            return json.load(response)


def start(directory: Path, address: str = "127.0.0.1", preferred_port: int = 0) -> Tracker:
    """Start a tracker unless it runs. It keeps the events and the DSN of earlier runs, and their port if that is free.

    Args:
        directory: the tracker's own directory.
        address: the only address that it listens on.
        preferred_port: the port to use if it is free; 0 for any port.
    """
    environment = build_once(cache() / "tracker" / _environment_key(), _build)
    for other in environment.parent.glob("[0-9a-f]*"):  # environments of earlier lock files
        if other != environment and not processes(str(other / "venv/bin/python")):
            shutil.rmtree(other)
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory / ".lock"):
        return _start(directory, address, preferred_port, environment)


def find(directory: Path) -> Tracker | None:
    """Return the running tracker of a directory, or None."""
    try:
        access = json.loads((directory / "tracker.json").read_text())
    except (OSError, ValueError):
        return None
    return Tracker(directory, **access) if processes(_mark(directory)) else None


def stop(directory: Path) -> None:
    """Stop the tracker of a directory, if it runs. Its events are kept."""
    kill(_mark(directory))


def _mark(directory: Path) -> str:
    """Return the argument that identifies the process of a directory's tracker."""
    return f"--directory={directory.absolute()}"


def _start(directory: Path, address: str, preferred_port: int, environment: Path) -> Tracker:
    before = find(directory)
    if before and before.url.startswith(f"http://{address}:"):
        return before
    stop(directory)
    if not (directory / "db.sqlite3").exists():
        for database in (environment / "template").iterdir():
            shutil.copy(database, directory)
    ready = directory / "tracker.json"
    if ready.exists():
        preferred_port = int(json.loads(ready.read_text())["url"].rpartition(":")[2])
        ready.unlink()
    log = directory / "tracker.log"
    python = str(environment / "venv/bin/python")
    spawn([python, "-P", str(_SERVER), _mark(directory), address, str(preferred_port)], log)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if ready.exists() and (running := find(directory)):
            return running
        time.sleep(0.02)
    last_line = log.read_text(errors="replace").strip().rpartition("\n")[2]
    raise SandboxError(f"the tracker did not start; the last line of {log}: {last_line}")


def _environment_key() -> str:
    parts = [_LOCK.read_bytes(), _SERVER.read_bytes(), sys.version.encode(), sys.base_prefix.encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _build(work: Path) -> None:
    say("installing the tracker, once for each version of its lock file")
    python = work / "venv/bin/python"
    uv = shutil.which("uv", path=f"{Path(sys.prefix) / 'bin'}:{os.environ.get('PATH', '')}")
    if uv:
        run(uv, "venv", "--quiet", "--python", sys.executable, work / "venv")
        run(uv, "pip", "install", "--quiet", "--python", python, "--require-hashes", "-r", _LOCK)
    else:
        run(sys.executable, "-m", "venv", work / "venv")
        run(python, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", _LOCK)
    # Migrated databases for all trackers: a migration takes seconds, a copy almost no time.
    (work / "template").mkdir()
    # This run also compiles the bytecode, so PYTHONDONTWRITEBYTECODE must not be set.
    run(python, "-P", _SERVER, _mark(work / "template"), PYTHONDONTWRITEBYTECODE="")
