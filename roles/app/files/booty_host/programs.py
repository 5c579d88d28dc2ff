"""Bring an app's processes and timers to a release, after the web service.

A process runs as instances of a unit, `NAME-PROCESS@N.service`. The instances of a new release get the lowest free
numbers, so that they run beside those of the old one. The links of systemd that start an instance at boot name the
release's instances alone; release.env decides which release they start. A timer has a unit `NAME-TIMER.timer`, and a
run of it is `NAME-TIMER.service`.
"""

from __future__ import annotations

import itertools
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from booty_host import HostError, journal, lease
from booty_host.app import App, installed
from booty_host.files import parse_assignments, parse_pointer, read, sync_directory, write_atomically
from booty_host.processes import run
from booty_host.release import Release, differs
from booty_host.state import State
from booty_host.systemd import Systemd

# The section of a unit for the host program.
SECTION = "\n[X-Booty]\n"
STOPPED = {"inactive", "failed"}
# How long an instance whose unit can go is waited for, in seconds. Otherwise the next run removes the unit.
END_SECONDS = 1.0


def fields(text: str) -> dict[str, str]:
    """Return what a unit says to the host program: `App`, `Count`, `OneHost`; nothing if it is of no program."""
    return parse_assignments(text.partition(SECTION)[2])


def of_release(release: Release) -> dict[str, str]:
    """Return the texts of the units of a release's processes and timers, by name."""
    return {name: text for name, text in release.units.items() if fields(text)}


def on_disk(app: App) -> dict[str, str]:
    """Return the texts of the installed units of the app's processes and timers, by name."""
    texts = {path.name: read(path) for path in sorted(app.unit_files.glob(f"{app.name}-*")) if path.is_file()}
    return {name: text for name, text in texts.items() if fields(text).get("App") == app.name}


def name_of(app: App, unit: str) -> str:
    """Return the name of the process or timer that a unit belongs to."""
    return re.split(r"[@.]", unit.removeprefix(f"{app.name}-"))[0]


def template_of(unit: str) -> str:
    """Return the unit that an instance is one of."""
    return re.sub(r"@\d+\.", "@.", unit)


def number(unit: str) -> int:
    """Return the number of an instance."""
    return int(unit.partition("@")[2].partition(".")[0])


def link(app: App, unit: str) -> Path:
    """Return the link by which systemd starts a unit at boot."""
    target = "timers.target" if unit.endswith(".timer") else "multi-user.target"
    return app.unit_files / f"{target}.wants" / unit


def linked(app: App, template: str) -> set[str]:
    """Return the instances of a unit that start at boot."""
    stem, _, suffix = template.partition("@")
    return {path.name for path in link(app, template).parent.glob(f"{stem}@[0-9]*{suffix}")}


def labels(app: App, unit: str, state: dict[str, str]) -> dict[str, str]:
    """Return the labels that an instance was started with, by the record of its start; none without a record."""
    record = parse_pointer(read(app.started / unit))
    return record if state["InvocationID"] and record.get("INVOCATION_ID") == state["InvocationID"] else {}


def running(app: App, systemd: Systemd) -> dict[str, dict[str, str]]:
    """Return the states of all processes and of runs of timers that have not ended, by unit."""
    units = on_disk(app)
    patterns = [name.replace("@.", "@*.") for name in units if name.endswith(".service")]
    names = systemd.loaded(*patterns) if patterns else []
    states = dict(zip(names, systemd.units(*names), strict=True)) if names else {}
    return {name: state for name, state in states.items() if state["ActiveState"] not in STOPPED}


def in_use(app: App, systemd: Systemd, label: str) -> set[Path]:
    """Return the directories that a label names in any process or run of a timer."""
    return {
        Path(value) for unit, state in running(app, systemd).items() if (value := labels(app, unit, state).get(label))
    }


def problems(app: App, release: Release) -> list[str]:
    """Return the reasons why the host can't have a release's processes and timers, before anything is changed."""
    units, sentences = of_release(release), []
    others = [name for name in installed(app.root) if name.startswith(f"{app.name}-")]
    for unit in units:
        base = f"{app.name}-{name_of(app, unit)}"
        if owner := next((other for other in others if base == other or base.startswith(f"{other}-")), ""):
            sentences.append(
                f"{name_of(app, unit)} of {app.name} and the app {owner} of this host would both be {base}. Give the"
                " process or timer another name."
            )
        own = app.unit_files / unit
        places = (app.root / "usr/lib/systemd/system" / unit, own)
        for path in places:
            if path.exists() and fields(read(path)).get("App") != app.name:
                sentences.append(
                    f"{path} is there already, and not of {app.name}. Give the process or timer another name."
                )
    for path in app.unit_files.glob(f"{app.name}*"):
        owner = fields(read(path)).get("App", app.name) if path.is_file() else app.name
        if owner != app.name and re.split(r"[@.]", path.name)[0] == app.name:
            sentences.append(f"{path} is of a process or timer of the app {owner}. Give this app another name.")
    for unit in (unit for unit in units if unit.endswith(".timer")):
        schedule = parse_assignments(units[unit])["OnCalendar"]
        done = run("systemd-analyze", "calendar", schedule)
        if done.returncode:
            reason = next(iter(done.stderr.strip().splitlines()), "no reason given")
            sentences.append(f"systemd refuses the schedule of the timer {name_of(app, unit)}: {reason}.")
    return [*dict.fromkeys(sentences)]


def places_of(places: dict[str, str], host: str) -> dict[str, dict[str, Any]]:
    """Return the places of processes and timers as in `State.places`.

    Args:
        places: the host of each, by name.
        host: the name of this host.
    """
    return {name: {"host": place, "here": place == host} for name, place in places.items()}


def give_up(app: App, places: dict[str, str], host: str, by: str, wait: int, check: bool) -> dict[str, Any]:
    """Stop the processes and timers that another host is to have.

    Args:
        app: the app.
        places: the host of each process and timer with one_host, by name.
        host: the name of this host.
        by: who asks and for what.
        wait: how long to wait for another run's lock, in seconds.
        check: change nothing.
    """
    if check:
        return {"changed": True}

    def work() -> dict[str, Any]:
        state = State.load(app)
        state.places = {**state.places, **places_of(places, host)}
        state.save()
        serving = Release(app, read(app.release_env), on_disk(app))
        Programs(app, Systemd(app)).follow(serving, state.here, 0)
        return {"changed": True}

    return lease.detached(app, work, by, wait)


@dataclass
class Plan:
    """The changes after which the host runs exactly the processes and timers of a release.

    Attributes:
        first: instances that must end before a new one starts.
        starts: new instances.
        ends: instances that end once the new ones stay up.
        failed: instances that have failed and don't belong to the release.
        boot: the units that start at boot.
        no_boot: the units that must not do so any more.
        timers: the timers to start.
        stops: the timers to stop.
    """

    first: list[str] = field(default_factory=list)
    starts: list[str] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    boot: list[str] = field(default_factory=list)
    no_boot: list[str] = field(default_factory=list)
    timers: list[str] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)

    def difference(self) -> str:
        """Name the first step; "" if there is none."""
        words = {
            "starts": "does not run the release",
            "first": "runs, and should not",
            "ends": "runs, and should not",
            "timers": "is not active",
            "stops": "is active, and should not be",
            "boot": "does not start at boot",
            "no_boot": "starts at boot, and should not",
        }
        return next((f"{units[0]} {text}" for name, text in words.items() if (units := getattr(self, name))), "")


class Programs:
    """The processes and timers of an app on a host."""

    def __init__(self, app: App, systemd: Systemd) -> None:
        self.app, self.systemd = app, systemd

    def unsettled(self, release: Release, here: set[str]) -> str:
        """Name the first thing that `follow` would change; "" if the host runs a release's processes and timers.

        Args:
            release: the release.
            here: the names of those with one_host that run on this host.
        """
        for name, text in of_release(release).items():
            if read(self.app.unit_files / name) != text:
                return f"{self.app.unit_files / name} differs"
        if left := self.left_over(release):
            return f"{left[0]} is left over"
        return self.plan(release, here).difference()

    def left_over(self, release: Release) -> list[str]:
        """Return the units of processes and timers that a release does not have and that do not run any more."""
        kept = {*release.units, *(template_of(unit) for unit in running(self.app, self.systemd))}
        return [name for name in on_disk(self.app) if name not in kept]

    def plan(self, release: Release, here: set[str], restart: bool = False) -> Plan:
        """Return the steps to a release; the arguments are those of `follow`."""
        app, wanted, plan = self.app, of_release(release), Plan()
        units = {**on_disk(app), **wanted}
        templates = [name for name in units if name.endswith("@.service")]
        names = self.systemd.loaded(*(name.replace("@.", "@*.") for name in templates)) if templates else []
        states = dict(zip(names, self.systemd.units(*names), strict=True)) if names else {}
        for template in templates:
            one_host = fields(units[template])["OneHost"] == "yes"
            runs_here = template in wanted and (not one_host or name_of(app, template) in here)
            count = int(fields(units[template])["Count"]) if runs_here else 0
            instances = sorted((name for name in states if template_of(name) == template), key=number)
            alive = [name for name in instances if states[name]["ActiveState"] not in STOPPED]
            good = [name for name in alive if not restart and self.serves(name, states[name], release)][:count]
            stale = [name for name in alive if name not in good]
            if one_host:
                plan.first += stale
            else:
                # One that is ending already may have a job to finish.
                plan.ends += [name for name in stale if states[name]["ActiveState"] != "deactivating"]
            taken = {*map(number, good if one_host else alive)}
            free = (each for each in itertools.count(1) if each not in taken)
            new = [template.replace("@.", f"@{next(free)}.") for _ in range(count - len(good))]
            plan.starts += new
            failed = {name for name in instances if states[name]["ActiveState"] == "failed"}
            plan.failed += sorted(failed - {*new})
            plan.boot += sorted({*good, *new} - linked(app, template))
            plan.no_boot += sorted(linked(app, template) - {*good, *new})
        timers = [name for name in units if name.endswith(".timer")]
        for timer, state in zip(timers, self.systemd.units(*timers) if timers else [], strict=True):
            runs_here = timer in wanted and (fields(units[timer])["OneHost"] != "yes" or name_of(app, timer) in here)
            active, at_boot = state["ActiveState"] == "active", link(app, timer).is_symlink()
            plan.timers += [timer] if runs_here and not active else []
            plan.stops += [timer] if active and not runs_here else []
            plan.boot += [timer] if runs_here and not at_boot else []
            plan.no_boot += [timer] if at_boot and not runs_here else []
        return plan

    def serves(self, unit: str, state: dict[str, str], release: Release) -> bool:
        """Return whether an instance is up on a release, started from the unit that the release has."""
        text = release.units.get(template_of(unit), "")
        unit_hash = re.search(r"BOOTY_UNIT=(\w+)", text)
        expected = {**release.labels, "BOOTY_UNIT": unit_hash[1] if unit_hash else ""}
        return state["ActiveState"] == "active" and not differs(expected, labels(self.app, unit, state))

    def follow(self, release: Release, here: set[str], seconds: float, restart: bool = False) -> None:
        """Start the processes and timers of a release, whose units are installed, and end the others.

        Instances with one_host end first, so that two of them never run at once. The other ones start beside the
        old ones. The method does not wait for the end of the old ones, since a worker may take long to finish its job.

        Args:
            release: the release, which release.env names.
            here: the names of those with one_host that run on this host.
            seconds: how long a new instance must stay up.
            restart: whether also instances end that run the release.

        Raises:
            HostError: a new instance does not stay up. The old ones that need not end first still run.
        """
        plan, systemctl = self.plan(release, here, restart), self.systemd.systemctl
        if plan.first:
            self.log("stopping", plan.first)
            systemctl("stop", *plan.first)
        if plan.starts:
            self.log("starting", plan.starts)
            systemctl("reset-failed", *plan.starts, check=False)
            systemctl("start", *plan.starts)
            self.watch(plan.starts, seconds)
        self.set_boot(plan)
        if plan.ends:
            self.log("ending", plan.ends)
            systemctl("stop", "--no-block", *plan.ends)
        if plan.stops:
            systemctl("stop", *plan.stops)
            for timer in plan.stops:
                # The time of its last run: without it, a later start would take the runs meanwhile for missed ones.
                (self.app.stamps / f"stamp-{timer}").unlink(missing_ok=True)
        if plan.timers:
            systemctl("start", *plan.timers)
        if plan.failed:
            systemctl("reset-failed", *plan.failed, check=False)
        self.tidy(of_release(release))

    def watch(self, units: list[str], seconds: float) -> None:
        """Return when instances have stayed up for some seconds; raise HostError as soon as one has not."""
        deadline = time.monotonic() + seconds
        while True:
            for unit, state in zip(units, self.systemd.units(*units), strict=True):
                if state["ActiveState"] != "active" or state["NRestarts"] != "0":
                    raise HostError(
                        f"{unit} does not stay up for {seconds:g} s ({state['Result']})\n{self.systemd.journal(unit)}"
                    )
            if time.monotonic() >= deadline:
                return
            time.sleep(0.1)

    def set_boot(self, plan: Plan) -> None:
        """Make and remove the links by which systemd starts units at boot, as `systemctl enable` does."""
        for unit in plan.boot:
            path = link(self.app, unit)
            path.parent.mkdir(exist_ok=True)
            path.symlink_to(self.app.unit_files / template_of(unit))
        for unit in plan.no_boot:
            link(self.app, unit).unlink()
        for folder in {link(self.app, unit).parent for unit in (*plan.boot, *plan.no_boot)}:
            sync_directory(folder)

    def tidy(self, wanted: dict[str, str]) -> None:
        """Remove the units of processes and timers that the release does not have.

        A unit that still runs stays, with the count 0: a way back must not start it.
        """
        left = {unit: text for unit, text in on_disk(self.app).items() if unit not in wanted}
        deadline = time.monotonic() + END_SECONDS
        while busy := {*left} & {template_of(unit) for unit in running(self.app, self.systemd)}:
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        for unit, text in left.items():
            if unit in busy:
                write_atomically(self.app.unit_files / unit, re.sub(r"(?m)^Count=\d+$", "Count=0", text))
            else:
                # systemd would keep an instance that had to be killed as a failed unit without a file.
                self.systemd.systemctl("reset-failed", unit.replace("@.", "@*."), check=False)
                (self.app.unit_files / unit).unlink()
        if left:
            self.systemd.systemctl("daemon-reload")

    def log(self, word: str, units: list[str]) -> None:
        """Leave a record in the journal."""
        journal.log(self.app, f"{word} {', '.join(units)}")
