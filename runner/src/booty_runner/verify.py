"""The verifier: whether this process is the release it claims to be, and has what it needs."""

import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from booty_runner import hooks, telemetry
from booty_runner.settings import Settings, current
from booty_runner.target import label_flaw

# release.env of each app lies here, in the folder with the name of the app.
ETC = Path("/etc")
# Below this a database or a journal soon can't be written.
LOW_DISK_BYTES = 100 * 2**20
# A clock that is further off misdates events and fails TLS.
CLOCK_SECONDS = 300


class VerifyError(RuntimeError):
    """A check failed; the message says which and why."""


@dataclass(frozen=True)
class Check:
    """What one check found: a flaw in words, or what is well."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Report:
    """What all checks found, and of which process."""

    release: str | None
    environment: str
    pid: int
    checks: list[Check]

    @property
    def flaw(self) -> str | None:
        """All that is wrong in one line, or None."""
        return "; ".join(f"{check.name}: {check.detail}" for check in self.checks if not check.ok) or None

    @property
    def json(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        return {"ok": self.flaw is None, **asdict(self)}


async def verify(ask_tracker: bool = False) -> Report:
    """Make every check, the app's own last; of the tracker what is known already, or else ask it with an event."""
    settings = current()
    checks = [
        _check("settings", None, settings.sentry_environment),  # this process would not run with others
        _check("tracker", *await _tracker(settings, ask_tracker)),
        _check("release", _release_flaw(settings), settings.sentry_release or "(unknown)"),
        _check("state", directory_flaw(settings.state_directory), str(settings.state_directory or "none is set")),
        _check("disk", *_disk(settings)),
        _check("clock", _clock_flaw(settings), time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())),
        *[_check(name, *await function()) for name, function in hooks.checks.items()],
    ]
    return Report(settings.sentry_release, settings.sentry_environment, os.getpid(), checks)


async def start_flaw(settings: Settings) -> str | None:
    """Say why a service must not start, or None: a release on trial makes every check."""
    if settings.booty_candidate:
        return (await verify(settings.booty_telemetry_gate)).flaw
    return await telemetry.gate_flaw() if settings.booty_telemetry_gate else None


def _check(name: str, flaw: str | None, detail: str) -> Check:
    return Check(name, flaw is None, flaw or detail)


async def _tracker(settings: Settings, ask: bool) -> tuple[str | None, str]:
    if settings.sentry_dsn is None and not settings.booty_telemetry_gate:
        return None, "not asked: SENTRY_DSN is not set"
    if ask:
        return await telemetry.gate_flaw(), "accepted an event"
    status = telemetry.status() or {}
    if status.get("status") is None:
        return None, "not asked"
    return telemetry.last_flaw(), "accepted the last event"


def _release_flaw(settings: Settings) -> str | None:
    """Compare the release in memory with the code on disk, with what is to run, and with what the tracker was told."""
    if flaw := label_flaw():
        return flaw
    sent = telemetry.sent_release()
    if sent is not None and sent != (settings.sentry_release or ""):
        return f"{settings.sentry_release or '(unknown)'} runs, and events say {sent or '(unknown)'}"
    if settings.booty_release_dir is None or (settings.booty_candidate and not hooks.live):
        return None
    # The release lies in /opt/NAME/releases.
    pointer = ETC / settings.booty_release_dir.parents[1].name / "release.env"
    try:
        lines = pointer.read_text().splitlines()
    except OSError:  # not deployed by a play
        return None
    named = next((line.partition("=")[2] for line in lines if line.startswith("SENTRY_RELEASE=")), "")
    if named != settings.sentry_release:
        return f"{settings.sentry_release} runs, and {pointer} names {named or 'none'}"
    return None


def directory_flaw(directory: Path | None) -> str | None:
    """Say why a directory can't be written, or None: a byte in a file without a name proves it."""
    if directory is None:
        return None
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            file.write(b".")
    except OSError as error:
        return f"{directory} is not writable: {error.strerror}"
    return None


def _disk(settings: Settings) -> tuple[str | None, str]:
    place = settings.state_directory or Path.cwd()
    try:
        free, inodes = shutil.disk_usage(place).free, os.statvfs(place)
    except OSError as error:
        return f"{place} can't be asked: {error.strerror}", ""
    if free < LOW_DISK_BYTES:
        return f"{place} has only {free // 2**20} MB left", ""
    if inodes.f_files and not inodes.f_favail:
        return f"{place} has no inode left", ""
    return None, f"{free // 2**20} MB free"


def _clock_flaw(settings: Settings) -> str | None:
    if settings.booty_release_dir:
        try:
            # When it was put here: unlike its contents' dates, nobody chooses this one.
            staged = settings.booty_release_dir.stat().st_ctime
        except OSError:
            staged = 0.0
        if time.time() < staged - CLOCK_SECONDS:
            return "the time is before that at which the release was staged"
    offset = telemetry.clock_offset()
    if offset is not None and abs(offset) > CLOCK_SECONDS:
        return f"it is {abs(offset):.0f} s {'behind' if offset > 0 else 'ahead of'} the tracker's"
    return None
