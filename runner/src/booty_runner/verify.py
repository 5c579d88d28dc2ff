"""The verifier: checks that this process is the release in its label, and that its host has what it needs."""

import logging
import os
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from booty_runner import gate, hooks, telemetry
from booty_runner.gate import gate_flaw
from booty_runner.settings import Settings, current
from booty_runner.target import label_flaw

log = logging.getLogger(__name__)

# Each app has its release.env in /etc/NAME.
ETC = Path("/etc")
# With less free space, a database or a journal soon can't be written.
LOW_DISK_BYTES = 100 * 2**20
# With a larger offset, events have wrong dates and TLS fails.
CLOCK_SECONDS = 300


class VerifyError(RuntimeError):
    """A check failed; the message names the check and its flaw."""


@dataclass(frozen=True)
class Check:
    """The result of one check; `detail` is the flaw if there is one."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Report:
    """The results of all checks, and the process that made them.

    Attributes:
        proof: the id of the event that the tracker was asked to accept; None without one.
        sampled: the share of the errors that the client in force reports; None if it reports none.
    """

    release: str | None
    environment: str
    pid: int
    checks: list[Check]
    proof: str | None
    sampled: float | None

    @property
    def flaw(self) -> str | None:
        """All flaws in one line, or None."""
        return "; ".join(f"{check.name}: {check.detail}" for check in self.checks if not check.ok) or None

    @property
    def json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {"ok": self.flaw is None, **asdict(self)}


async def verify(ask_tracker: bool = False) -> Report:
    """Make every check, the app's own last.

    Args:
        ask_tracker: send the tracker an event, instead of reporting the answer to the last one.
    """
    settings = current()
    checks = [
        _check("settings", None, settings.sentry_environment),  # a flaw here would have ended the start
        _check("tracker", *await _tracker(settings, ask_tracker)),
        _check("release", _release_flaw(settings), settings.sentry_release or "(unknown)"),
        _check("state", directory_flaw(settings.state_directory), str(settings.state_directory or "not set")),
        _check("disk", *_disk(settings)),
        _check("clock", _clock_flaw(settings), time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())),
        *[_check(name, *await function()) for name, function in hooks.checks.items()],
    ]
    watch = telemetry.watch()
    return Report(
        settings.sentry_release,
        settings.sentry_environment,
        os.getpid(),
        checks,
        watch.proof if watch else None,
        gate.sampled(telemetry.in_force()),
    )


async def start_flaw(settings: Settings) -> str | None:
    """Return why the service must not start, or None. A candidate makes every check, a service only the gate."""
    if not settings.booty_telemetry_gate and telemetry.watch() is None:
        log.info("SENTRY_DSN is not set: errors are not reported in %s", settings.sentry_environment)
    if settings.booty_candidate:
        return (await verify(settings.booty_telemetry_gate)).flaw
    return await gate_flaw() if settings.booty_telemetry_gate else None


def _check(name: str, flaw: str | None, detail: str) -> Check:
    return Check(name, flaw is None, flaw or detail)


async def _tracker(settings: Settings, ask: bool) -> tuple[str | None, str]:
    watch = telemetry.watch()
    if watch is None and settings.sentry_dsn is None and not settings.booty_telemetry_gate:
        return None, "not asked: SENTRY_DSN is not set"
    if ask:
        return await gate_flaw(), f"accepted an event of {telemetry.client_in_words()}"
    if watch is None or watch.deliveries.last is None:
        return None, "not asked"
    return watch.deliveries.last_flaw, f"accepted the last event of {telemetry.client_in_words()}"


def _release_flaw(settings: Settings) -> str | None:
    """Compare this process's SENTRY_RELEASE with the code on disk, with the last event, and with release.env."""
    if flaw := label_flaw():
        return flaw
    watch = telemetry.watch()
    sent = watch.release if watch else None
    if sent is not None and sent != (settings.sentry_release or ""):
        return f"{settings.sentry_release or '(unknown)'} runs, and events say {sent or '(unknown)'}"
    if settings.booty_release_dir is None or (settings.booty_candidate and not hooks.live):
        return None
    # The release is in /opt/NAME/releases.
    release_env = ETC / settings.booty_release_dir.parents[1].name / "release.env"
    try:
        lines = release_env.read_text().splitlines()
    except OSError:  # not deployed by a play
        return None
    release = next((line.partition("=")[2] for line in lines if line.startswith("SENTRY_RELEASE=")), "")
    if release != settings.sentry_release:
        return f"{settings.sentry_release} runs, and {release_env} names {release or 'none'}"
    return None


def directory_flaw(directory: Path | None) -> str | None:
    """Return why a directory can't be written, or None. The test is a byte in a file that never gets a name."""
    if directory is None:
        return None
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            file.write(b".")
    except OSError as error:
        return f"{directory} is not writable: {error.strerror}"
    return None


def _disk(settings: Settings) -> tuple[str | None, str]:
    directory = settings.state_directory or Path.cwd()
    try:
        free, inodes = shutil.disk_usage(directory).free, os.statvfs(directory)
    except OSError as error:
        return f"{directory} can't be read: {error.strerror}", ""
    if free < LOW_DISK_BYTES:
        return f"{directory} has only {free // 2**20} MB left", ""
    if inodes.f_files and not inodes.f_favail:
        return f"{directory} has no inode left", ""
    return None, f"{free // 2**20} MB free"


def _clock_flaw(settings: Settings) -> str | None:
    if settings.booty_release_dir:
        try:
            # The kernel sets ctime when the release is staged; no program can choose it, unlike mtime.
            staged_at = settings.booty_release_dir.stat().st_ctime
        except OSError:
            staged_at = 0.0
        if time.time() < staged_at - CLOCK_SECONDS:
            return "the time is earlier than when the release was staged"
    watch = telemetry.watch()
    offset = watch.clock_offset if watch else None
    if offset is not None and abs(offset) > CLOCK_SECONDS:
        return f"it is {abs(offset):.0f} s {'behind' if offset > 0 else 'ahead of'} the tracker's"
    return None
