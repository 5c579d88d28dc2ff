"""The local tracker: a real Bugsink, which speaks Sentry's protocol, and what it received.

Bugsink is only used for development here and never distributed with Booty (its licence is PolyForm Shield).
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
# A proxy that the environment names can't reach an address of this machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Event:
    """An event as the tracker stored it."""

    id: str
    """The tracker's own id."""
    event_id: str
    """What the SDK returned, without dashes."""
    url: str
    """Where a person looks at it."""
    data: dict[str, Any]
    """The event as it was sent: `release`, `environment`, `transaction`, `exception` …"""


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
        """List what was received, oldest first; the `id` in each leads to the whole event."""
        issues = self._list(f"/api/canonical/0/issues/?project={self.project}")
        found = [e for i in issues for e in self._list(f"/api/canonical/0/events/?issue={i['id']}&order=asc")]
        return sorted(found, key=lambda event: str(event["ingested_at"]))

    def event(self, id: str) -> Event:
        """Give an event by the tracker's own id."""
        found = self._get(f"{self.url}/api/canonical/0/events/{id}/")
        page = f"{self.url}/issues/issue/{found['issue']}/event/{found['id']}/"
        return Event(found["id"], found["event_id"].replace("-", ""), page, found["data"])

    def wait_for_event(
        self,
        predicate: Callable[[dict[str, Any]], bool] = lambda data: True,
        timeout: float = 10,
        unless: Collection[str] = (),
    ) -> Event:
        """Wait for an event whose `data` the predicate accepts, and give the first one.

        Args:
            predicate: told from other events by this.
            timeout: seconds.
            unless: the tracker's ids of events that were there before.

        Raises:
            TimeoutError: none came in time; says what came instead.
        """
        seen: dict[str, Event] = {}
        deadline = time.monotonic() + timeout
        while True:
            for id in (entry["id"] for entry in self.events()):
                if id not in seen and id not in unless:
                    seen[id] = self.event(id)
                    if predicate(seen[id].data):
                        return seen[id]
            if time.monotonic() > deadline:
                came = [(e.data.get("transaction"), e.data.get("release")) for e in seen.values()]
                raise TimeoutError(f"no such event within {timeout} s; (transaction, release) that came: {came}")
            time.sleep(0.1)

    def _list(self, path: str) -> list[dict[str, Any]]:
        found, page = [], f"{self.url}{path}"
        while page:
            answer = self._get(page)
            found += answer["results"]
            page = answer["next"]
        return found

    def _get(self, url: str) -> Any:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self.token}"})
        with _OPENER.open(request, timeout=10) as response:
            return json.load(response)


def start(directory: Path, address: str = "127.0.0.1", preferred_port: int = 0) -> Tracker:
    """Start a tracker unless it runs; one that ran before keeps its events, its DSN and, if free, its port.

    Args:
        directory: what the tracker keeps, of this one alone.
        address: where it listens; nothing but this address reaches it.
        preferred_port: taken if it is free; 0 is any.
    """
    environment = build_once(cache() / "tracker" / _environment_key(), _build)
    for other in environment.parent.glob("[0-9a-f]*"):  # of earlier locks
        if other != environment and not processes(str(other / "venv/bin/python")):
            shutil.rmtree(other)
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory / ".lock"):
        return _start(directory, address, preferred_port, environment)


def find(directory: Path) -> Tracker | None:
    """Give the running tracker of a directory, or None."""
    try:
        told = json.loads((directory / "tracker.json").read_text())
    except (OSError, ValueError):
        return None
    return Tracker(directory, **told) if processes(_mark(directory)) else None


def stop(directory: Path) -> None:
    """Stop a directory's tracker, if it runs. Its events stay."""
    kill(_mark(directory))


def _mark(directory: Path) -> str:
    """Give the argument by which a directory's tracker is told from all other processes."""
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
        if ready.exists() and (found := find(directory)):
            return found
        time.sleep(0.02)
    said = log.read_text(errors="replace").strip().rpartition("\n")[2]
    raise SandboxError(f"the tracker did not start, {log} says: {said}")


def _environment_key() -> str:
    parts = [_LOCK.read_bytes(), _SERVER.read_bytes(), sys.version.encode(), sys.base_prefix.encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _build(work: Path) -> None:
    say("installing the tracker, once for each of its locks")
    python = work / "venv/bin/python"
    uv = shutil.which("uv", path=f"{Path(sys.prefix) / 'bin'}:{os.environ.get('PATH', '')}")
    if uv:
        run(uv, "venv", "--quiet", "--python", sys.executable, work / "venv")
        run(uv, "pip", "install", "--quiet", "--python", python, "--require-hashes", "-r", _LOCK)
    else:
        run(sys.executable, "-m", "venv", work / "venv")
        run(python, "-m", "pip", "install", "--quiet", "--require-hashes", "-r", _LOCK)
    # Migrating takes seconds, copying what was migrated none.
    (work / "template").mkdir()
    # This first run also leaves the bytecode behind, which the environment might tell Python not to write.
    run(python, "-P", _SERVER, _mark(work / "template"), PYTHONDONTWRITEBYTECODE="")
