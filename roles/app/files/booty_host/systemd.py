"""Ask systemd for the states of units, and have systemd change them."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from booty_host import HostError, failures, secrets
from booty_host.app import App
from booty_host.files import parse_assignments, read
from booty_host.processes import JOURNALCTL, labels, run, run_tail

# systemctl says so when systemd executes itself anew, as an upgrade has it do. The job goes on, and can be waited for.
LOST = "D-Bus connection terminated"
# How long systemd may take beyond the times of the units, in seconds.
SLACK = 60


class Systemd:
    """The host's systemd, by its own commands. A test of the cutover's order overrides the methods that run one."""

    def __init__(self, app: App) -> None:
        self.app = app

    def show(self, *arguments: str) -> str:
        """Return what `systemctl show` prints; raise HostError if systemd does not run the host."""
        # sd_booted(3), in Python.
        if not (self.app.root / "run/systemd/system").is_dir():
            first = read(self.app.root / "proc/1/comm").strip() or "another program"
            raise HostError(
                f"systemd does not run this host (its first process is {first}). Booty needs a host that systemd"
                " started."
            )
        done = run("systemctl", "show", *arguments)
        if done.returncode or not done.stdout:
            raise HostError(f"systemd does not answer: {done.stderr.strip()}. See what it says: systemctl status")
        return done.stdout

    def units(self, *names: str) -> list[dict[str, str]]:
        """Return the states of units by systemd's own property names, in the order of the arguments."""
        properties = (
            "ActiveState,SubState,Result,MainPID,NeedDaemonReload,UnitFileState,NRestarts,InvocationID,StatusText,"
            "ControlGroup,DropInPaths"
        )
        return [parse_assignments(block) for block in self.show(*names, f"--property={properties}").split("\n\n")]

    def unit(self, name: str) -> dict[str, str]:
        """Return the state of one unit."""
        return self.units(name)[0]

    def loaded(self, *patterns: str) -> list[str]:
        """Return the names of the units that systemd has in memory and that match these patterns."""
        done = run("systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", *patterns)
        return [line.split()[0] for line in done.stdout.splitlines() if line]

    def timer(self, name: str) -> dict[str, Any]:
        """Return when a timer elapses `next`, in microseconds since 1970; nothing if it is off."""
        done = run("systemctl", "list-timers", "--output=json", name)
        timers: list[dict[str, Any]] = json.loads(done.stdout or "[]")
        return next(iter(timers), {})

    def labels(self, name: str) -> dict[str, str]:
        """Return the labels of a service's main process; none if the service does not run."""
        return labels(self.app, int(self.unit(name).get("MainPID") or 0))

    def systemctl(self, verb: str, *names: str, check: bool = True) -> None:
        """Run `systemctl`; with `check`, raise HostError with the journal's last lines when it fails."""
        # An app can extend the time of its start and of its stop without end (EXTEND_TIMEOUT_USEC=, sd_notify(3)).
        texts = "".join(read(self.app.unit_files / re.sub(r"@\d+\.", "@.", name)) for name in names)
        bound = SLACK + sum(map(int, re.findall(r"^Timeout(?:Start|Stop)Sec=(\d+)$", texts, re.MULTILINE)))
        for _ in range(5):
            try:
                done = run("systemctl", verb, *names, timeout=bound)
            except subprocess.TimeoutExpired as error:
                run("systemctl", "kill", "--signal=KILL", *(name for name in names if not name.startswith("-")))
                done = subprocess.CompletedProcess(error.cmd, 1, "", f"no end after {bound} s, so it was killed")
                if verb == "start":
                    break
            else:
                if LOST not in done.stderr:
                    break
        if done.returncode and check:
            reason = next(iter(done.stderr.strip().splitlines()), "no reason given")
            raise HostError(f"systemctl {verb} {' '.join(names)}: {reason}\n{self.journal(names[0]) if names else ''}")

    def notify(self, pid: int, *lines: str) -> None:
        """Tell systemd something in the name of a process, as its own `sd_notify` would; root may."""
        sender = struct.pack("iii", pid, 0, 0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(str(self.app.root / "run/systemd/notify"))
            sock.sendmsg(["\n".join(lines).encode()], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, sender)])

    def kill(self, pid: int, number: int) -> None:
        """Send a signal to a process."""
        os.kill(pid, number)

    def move(self, pids: list[int], group: str) -> None:
        """Move processes to a control group, by its path in systemd; one that has ended is left out."""
        for pid in pids:
            with suppress(ProcessLookupError):
                Path(f"/sys/fs/cgroup{group}/cgroup.procs").write_text(str(pid))

    def journal(self, name: str) -> str:
        """Return the end of a unit's last start as a message shows it: its last lines, and the next step if known."""
        state = self.unit(name)
        invocation = state.get("InvocationID")
        # A main process that was the candidate has left its first lines under the candidate's invocation. Any app may
        # write lines with the field INVOCATION_ID; journald itself adds those with an underscore.
        fields = (
            f"_SYSTEMD_INVOCATION_ID={invocation}",
            f"INVOCATION_ID={invocation} _PID=1",
            *(f"_PID={state.get('MainPID', 0)} _SYSTEMD_UNIT={unit}" for unit in (name, self.app.candidate)),
        )
        match = " + ".join(fields).split()
        options = ("--boot", "--output=cat", "--lines=200")
        text = run_tail(1_000_000, *JOURNALCTL, *options, *(match if invocation else ["-u", name]))
        # A program of the app writes there what it likes.
        lines = failures.excerpt(secrets.filtered(text, secrets.hidden(self.app)))
        if not lines:
            return f"{name} left nothing in the journal."
        text = "\n  ".join([f"The journal of {name} ends with:", *lines])
        step = failures.next_step(lines).replace("NAME", self.app.name)
        return f"{text}\n{step}" if step else text

    def verify(self, units: dict[str, str]) -> str:
        """Return the faults that `systemd-analyze verify` finds in a set of units, by name and text; "" for none."""
        with tempfile.TemporaryDirectory() as directory:
            paths = [Path(directory, name) for name in units]
            for path in paths:
                path.write_text(units[path.name])
            # systemd-analyze exits 0 on an unknown key, so its output counts. It also verifies the units that these
            # need, and a fault of another package is not the app's: only lines that name one of these units count.
            output = run("systemd-analyze", "verify", "--man=no", *map(str, paths)).stderr.replace(f"{directory}/", "")
        own = re.compile(rf"(?<![\w@.\\-])({'|'.join(map(re.escape, units))})")
        return "\n".join(line for line in output.splitlines() if own.search(line))
