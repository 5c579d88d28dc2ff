"""Make the proven candidate the service's main process, without a start and without closing a connection of its own.

While the two processes change places, a `cat` that reads a pipe of the host program is the main process of the
candidate's unit. However the host program ends, the pipe closes, `cat` ends, and systemd runs `settle.sh` for the unit:
it decides by MainPID and release.env which process is the service, and ends the other one. The script is also the last
step of each handover that goes well.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from booty_host import HostError
from booty_host.app import App
from booty_host.files import read, write_atomically
from booty_host.processes import alive, family
from booty_host.release import Release, ask_itself, directory_of, fault, manifest, unfit_for_proxy
from booty_host.sockets import opened, options
from booty_host.systemd import Systemd

# A release from this number on takes SIGUSR1 and SIGUSR2; see `contract` in its manifest.
CONTRACT = 2
# How long systemd may take to accept another main process, in seconds.
PATIENCE = 10
# These lines of the service's unit are in force after a start only: the service's control group gets them then, or they
# belong to the unit that started the process.
AT_THE_START = re.compile(r"^(Slice|MemoryMax|TasksMax|Delegate|RuntimeDirectory|LoadCredential)\w*=.*$", re.MULTILINE)


class RefusedError(HostError):
    """systemd refuses the handover; the candidate is still a candidate, and nothing has changed."""


class LostError(HostError):
    """The service's main process is neither of the two, so it can't hand over; the candidate answers."""


def obstacles(app: App, systemd: Systemd, release: Release) -> Iterator[str]:
    """Return why the service has to restart on a release that its candidate has proven; nothing for a handover.

    Args:
        app: the app.
        systemd: the host's.
        release: the release to serve.
    """
    listener, service, candidate = systemd.units(app.socket, app.service, app.candidate)
    pid = int(service["MainPID"])
    if {listener["ActiveState"], service["ActiveState"]} != {"active"} or not pid:
        yield f"{app.service} is {service['ActiveState']}"
    for path in (directory_of(app, pid), app.releases / release.sha):
        if int(manifest(path).get("contract", 1)) < CONTRACT:
            yield f"the runner of {path.name} can't hand over"
    if "yes" in {listener["NeedDaemonReload"], service["NeedDaemonReload"], candidate["NeedDaemonReload"]}:
        yield "systemd has not read the units as they are"
    if {listener["UnitFileState"], service["UnitFileState"]} != {"enabled"}:
        yield f"{app.socket} and {app.service} are not enabled"
    if options(opened(app, listener)) != options(release.units[app.socket]):
        yield f"{app.socket} changes"
    for name in (app.slice, app.service):
        installed, new = (
            {match[0] for match in AT_THE_START.finditer(text)}
            for text in (read(app.unit_files / name), release.units[name])
        )
        if installed != new:
            yield f"{name} changes in {', '.join(sorted(installed ^ new))}"
    if problem := unfit_for_proxy(app, systemd, release):
        yield problem
    # The files that persons or programs have added to the units.
    drop_ins, of_candidate = (
        [read(Path(path)) for path in unit["DropInPaths"].split()] for unit in (service, candidate)
    )
    if drop_ins != of_candidate or AT_THE_START.search("\n".join(drop_ins)):
        yield f"{app.service} has a drop-in that {app.candidate} lacks, or that limits it"
    if not (app.root / "sys/fs/cgroup/cgroup.controllers").exists():
        yield "the host has no unified control groups"


class Handover:
    """The old main process, the candidate's, and the steps between."""

    def __init__(self, app: App, systemd: Systemd) -> None:
        """Read which processes the two are.

        Raises:
            RefusedError: one of them has ended.
        """
        self.app, self.systemd = app, systemd
        service, candidate = systemd.units(app.service, app.candidate)
        self.old, self.new = int(service["MainPID"]), int(candidate["MainPID"])
        self.group = candidate["ControlGroup"]  # the candidate's unit keeps it until it stops
        if not self.old or not self.new or not self.group:
            raise RefusedError("a process has ended")
        self.lease = 0  # the PID of the `cat`
        self.pipe = -1  # its other end

    def begin(self) -> None:
        """Put a process that ends with this one in the candidate's place, as the main process of the candidate's unit.

        Raises:
            RefusedError: systemd does not accept it; the handover has not begun.
        """
        app = self.app
        write_atomically(app.handover, f"{self.old} {self.new}\n", 0o600)
        reader, self.pipe = os.pipe()
        try:
            # systemd must notice the end of the process, so it has to be a child of PID 1: its parent ends at once.
            script = "exec 3<&0; cat <&3 >/dev/null & echo $!"
            self.lease = int(subprocess.check_output(["/bin/sh", "-c", script], stdin=reader))
            self.move([self.lease])
            # The candidate pings from a unit that takes messages of the `cat` alone from now on.
            self.systemd.notify(self.new, f"MAINPID={self.lease}", "WATCHDOG_USEC=0", "STATUS=handing over")
            self.wait("systemd does not take the lease", lambda: self.main_processes()[1] == self.lease)
        except (HostError, OSError, subprocess.SubprocessError, ValueError) as error:
            app.handover.unlink()
            os.close(self.pipe)
            raise RefusedError(f"it can't be handed over: {error}") from error
        finally:
            os.close(reader)

    def pause(self) -> bool:
        """Have the old process stop accepting, and tell whether it has within a second: it may hang."""
        self.check()
        with self.lost():
            self.systemd.kill(self.old, signal.SIGUSR1)
        deadline = time.monotonic() + 1
        while self.systemd.unit(self.app.service)["StatusText"] != "paused":
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def confirm(self, release: Release, timeout: float) -> None:
        """Wait until the candidate answers on the real socket; raise HostError if it does not.

        Args:
            release: the candidate's.
            timeout: in seconds; a process that has not paused may answer in its place.
        """
        deadline = time.monotonic() + timeout
        while True:
            self.check()
            problem = fault(release, self.new, ask_itself)
            if not problem:
                return
            if time.monotonic() > deadline:
                raise HostError(f"{problem}\n{self.systemd.journal(self.app.candidate)}")
            time.sleep(0.01)

    def complete(self) -> None:
        """Make the candidate the service's main process. The old one leaves the service's control group first.

        Otherwise the end of the old process could end the new one: with `KillMode=mixed`, systemd kills all processes
        in the group of a service whose main process has ended.
        """
        self.check()
        self.move(family(self.app, self.old))
        self.check()
        with self.lost():
            self.systemd.notify(self.old, f"MAINPID={self.new}", "STATUS=serving")
        self.wait("systemd does not take the new main process", self.is_complete)

    def is_complete(self) -> bool:
        """Tell whether the service's main process is the candidate's; raise HostError if it is neither of the two."""
        main = self.main_processes()[0]
        if main != self.new:
            self.check()
        return main == self.new

    def check(self) -> None:
        """Raise HostError unless the old process is the service, the candidate lives and the lease is held.

        Raises:
            LostError: only the first one is not so. An app can name another of its processes (MAINPID=, sd_notify(3)).
        """
        if not alive(self.app, self.new):
            raise HostError(f"the candidate has ended\n{self.systemd.journal(self.app.candidate)}")
        main, lease = self.main_processes()
        if main == self.new:
            return
        if lease != self.lease:
            raise HostError(f"{self.app.candidate} was stopped")
        if main != self.old:
            raise LostError(f"{self.app.service} was restarted, or its process has ended")

    @contextmanager
    def lost(self) -> Iterator[None]:
        """Raise LostError if the old process has just ended."""
        try:
            yield
        except ProcessLookupError:
            raise LostError(f"the process {self.old} of {self.app.service} has ended") from None

    def main_processes(self) -> tuple[int, int]:
        """Return the main PID of the service, and that of the candidate's unit while that is active."""
        service, candidate = self.systemd.units(self.app.service, self.app.candidate)
        return int(service["MainPID"]), int(candidate["MainPID"]) if candidate["ActiveState"] == "active" else 0

    def move(self, pids: list[int]) -> None:
        """Move processes to the control group of the candidate's unit; raise HostError if it has none any more."""
        try:
            self.systemd.move(pids, self.group)
        except FileNotFoundError:
            raise HostError(f"{self.app.candidate} was stopped") from None

    def wait(self, problem: str, done: Callable[[], bool]) -> None:
        """Wait until something is done; raise HostError if systemd takes too long for it."""
        deadline = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > deadline:
                raise HostError(problem)
            time.sleep(0.005)
