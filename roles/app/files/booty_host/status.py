"""Answer everything that `status.yml` shows of an app on a host. It changes nothing and starts nothing."""

from __future__ import annotations

import http.client
import json
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from booty_host import HostError, journal, lease, programs
from booty_host.app import App, installed
from booty_host.files import directories, parse_assignments, parse_pointer, read
from booty_host.observe import ask_internal, values
from booty_host.processes import labels, older_than, outdated, run
from booty_host.programs import Programs
from booty_host.release import Release, ask_installed, labels_on_disk, manifest, unsettled
from booty_host.state import State
from booty_host.systemd import Systemd

# How many characters of a label of a process are shown.
SHOWN = 256
# The journal's fields of a booty-deploy record, by their names in the answer.
FIELDS = {**journal.FIELDS, "until": "BOOTY_UNTIL", "message": "MESSAGE"}


def status(app: App, pointer: str, units: dict[str, str], every: bool, check: bool) -> dict[str, Any]:
    """Return everything as `apps`, by the app's name.

    Args:
        app: the app.
        pointer: the text of release.env that a deploy would write.
        units: the text of each unit that a deploy would write; without units, `drift` is not computed.
        every: whether all other apps of the host are shown as well; `booty`, the default name, is then left out if the
            host has apps but not this one.
        check: makes no difference, since the call changes nothing.
    """
    names = {*installed(app.root)} if every else set()
    if not names or app.name != "booty":
        names.add(app.name)
    proxies = proxy(app.root)
    return {
        "apps": {
            name: {**status_of(App(name, app.root), pointer, units), "proxy": proxies.get(name)}
            for name in sorted(names)
        }
    }


def proxy(root: Path) -> dict[str, Any]:
    """Return the proxy's status of each app with domains; {} without a proxy."""
    program = root / "usr/local/lib/booty-front.pyz"
    if not program.exists():
        return {}
    answer: dict[str, Any] = json.loads(run("/usr/bin/python3", "-I", str(program), "status").stdout or "{}")
    return answer


def status_of(app: App, pointer: str, units: dict[str, str]) -> dict[str, Any]:
    """Return the status of one app; arguments as for `status`."""
    systemd = Systemd(app)
    service, candidate = show(systemd, app.service), show(systemd, app.candidate)
    running = labels(app, pid := int(service.get("MainPID") or 0))
    serving = running.get("SENTRY_RELEASE")
    damaged = [
        f"{path} has no release.json that can be read" for path in directories(app.releases) if not manifest(path)
    ]
    entries = run(*JOURNAL, f"BOOTY_APP={app.name}").stdout
    try:
        state = State.load(app)
        served, places = state.served, state.places
    except HostError as error:
        served, places, damaged = [], {}, [str(error), *damaged]
    here = {name for name, place in places.items() if place["here"]}
    return {
        "ready": app.releases.is_dir() and app.etc.is_dir(),
        "service": service.get("ActiveState", "unknown"),
        # The service's own status line, and how often in a row systemd had to start it again.
        "says": service.get("StatusText", ""),
        "restarts": int(service.get("NRestarts") or 0),
        "since": since(service.get("ExecMainStartTimestamp", "")) if running else None,
        "memory": identity(running),
        "disk": identity(labels_on_disk(app)),
        # systemd holds the sockets, so a request to a stopped service would start it.
        "health": {"environment": running.get("SENTRY_ENVIRONMENT"), **ask_installed(app, pid)} if running else None,
        "damaged": damaged,
        "outdated": bool(running) and outdated(app.root, int(service["MainPID"])),
        "new_secrets": bool(running) and older_than(app, pid, app.secrets_env),
        "tracker": tracker(app) if running else None,
        "programs": programs_of(app, systemd, places),
        "previous": next((name for name in served if name != serving and (app.releases / name).is_dir()), None),
        "candidate": None
        if candidate.get("ActiveState") in {"inactive", "failed"}
        else identity(labels(app, int(candidate.get("MainPID") or 0)))
        or {"release": parse_pointer(read(app.candidate_env)).get("SENTRY_RELEASE")},
        "lease": lease.holder(app, read(Path("/proc/locks"))),
        "free": free(app.opt if app.opt.is_dir() else Path("/")),
        "last": last(entries),
        "watch": watch(entries, serving, time.time()),
        "drift": drift(app, systemd, Release(app, pointer, units), here) if units else None,
    }


def show(systemd: Systemd, name: str) -> dict[str, str]:
    """Return the state of a unit, with its times as seconds since 1970."""
    properties = "ActiveState,MainPID,ExecMainStartTimestamp,StatusText,NRestarts,InvocationID"
    return parse_assignments(systemd.show(name, "--timestamp=unix", f"--property={properties}"))


def programs_of(app: App, systemd: Systemd, places: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the processes and timers of the installed units.

    Args:
        app: the app.
        systemd: the host's systemd.
        places: as in `State.places`.

    Returns:
        for each its `name`, `kind` (process or timer), `host` (the one that has it alone, or None), and `here`, whether
        it runs on this host; for a process `count`, and `instances`, each with `unit`, `state`, `release`, `since` and
        `restarts`; for a timer `active`, `next`, `last`, `result`, and `release`, that of a run that is under way.
    """
    units, answer = programs.on_disk(app), []
    for unit, text in units.items():
        name, fields = programs.name_of(app, unit), programs.fields(text)
        place = places.get(name, {"host": "", "here": False}) if fields["OneHost"] == "yes" else {"host": None}
        entry = {"name": name, "host": place["host"], "here": place.get("here", True)}
        if unit.endswith(".timer"):
            timer, service = systemd.timer(unit), show(systemd, f"{app.name}-{name}.service")
            under_way = service.get("ActiveState") in {"active", "activating", "deactivating"}
            answer.append(
                {
                    **entry,
                    "kind": "timer",
                    # Without a next time while a run is under way.
                    "active": show(systemd, unit).get("ActiveState") == "active",
                    "next": moment(timer["next"] / 1_000_000) if timer.get("next") else None,
                    **last_run(f"{app.name}-{name}.service"),
                    "release": programs.labels(app, f"{app.name}-{name}.service", service).get("SENTRY_RELEASE")
                    if under_way
                    else None,
                }
            )
        elif unit.endswith("@.service"):
            at_boot = programs.linked(app, unit)
            names = sorted({*systemd.loaded(unit.replace("@.", "@*.")), *at_boot}, key=programs.number)
            states = {name: show(systemd, name) for name in names}
            instances = [
                {
                    "unit": name,
                    "state": "ending" if state["ActiveState"] == "deactivating" else state["ActiveState"],
                    "release": programs.labels(app, name, state).get("SENTRY_RELEASE"),
                    "since": since(state["ExecMainStartTimestamp"]),
                    "restarts": int(state["NRestarts"] or 0),
                }
                for name, state in states.items()
                # An instance that has ended and does not start at boot belongs to an earlier release.
                if state["ActiveState"] not in programs.STOPPED or name in at_boot
            ]
            count = int(fields["Count"]) if entry["here"] else 0
            answer.append({**entry, "kind": "process", "count": count, "instances": instances})
    return answer


def since(timestamp: str) -> str | None:
    """Return systemd's `@seconds` as a time in UTC; None if it holds no seconds."""
    return moment(int(timestamp[1:])) if timestamp[1:].isdecimal() else None


def moment(seconds: float) -> str:
    """Return a time in UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def identity(labels: dict[str, str]) -> dict[str, Any] | None:
    """Return the `release`, the `environment`, the `settings` and the `config` that labels name; None without labels.

    `config` is the folder with the files of app_config_dir, "" if there is none.
    """
    if not labels:
        return None
    names = {"release": "SENTRY_RELEASE", "environment": "SENTRY_ENVIRONMENT", "config": "BOOTY_CONFIG_DIR"}
    parts = {part: labels[name][:SHOWN] if name in labels else None for part, name in names.items()}
    return {**parts, "config": parts["config"] or "", "settings": settings(labels)}


def settings(labels: dict[str, str]) -> dict[str, str]:
    """Return the settings among the labels of a release or a process."""
    return {name: labels[name] for name in labels.get("BOOTY_SETTINGS", "").split(",") if name in labels}


def tracker(app: App) -> dict[str, Any] | None:
    """Ask the service on its internal socket how sending the last error went: `status`, `since` and `dropped`.

    None if the service has no Sentry client; a `status` in words says why there is no answer.
    """
    try:
        telemetry = ask_internal(app, "GET", "/status", 5)["telemetry"]
        return telemetry and values(telemetry, "status", "since", "dropped")
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"the service gives no status: {error or type(error).__name__}"
        return {"status": reason, "since": None, "dropped": None}


def free(path: Path) -> dict[str, float]:
    """Return how much of the releases' disk is free: `bytes`, and the `share` of its size."""
    usage = shutil.disk_usage(path)
    return {"bytes": usage.free, "share": round(usage.free / usage.total, 3)}


JOURNAL = (
    *("journalctl", "--quiet", "--no-pager", "--reverse", "--lines=100"),
    *("--output=json", f"--output-fields={','.join(FIELDS.values())}", *journal.OURS),
)


def last(entries: str) -> dict[str, Any] | None:
    """Return the last record of the end of a deploy, a rollback or a refusal, and its time as `at`; None without one.

    Args:
        entries: the records of booty-deploy, the newest first, as lines of JSON.
    """
    records = [json.loads(line) for line in journal.lines_of(entries)]
    ends = (record for record in records if isinstance(record.get("BOOTY_RESULT"), str))
    record = next(ends, records[0] if records else None)
    if record is None:
        return None
    return named(record)


def named(record: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a record of the journal by their names in the answer, and its time as `at`."""
    return {**journal.texts(record, FIELDS), "at": moment(journal.seconds_of(record))}


def last_run(unit: str) -> dict[str, Any]:
    """Return the end of a timer's `last` run and its `result` from the journal: systemd loses both at a reboot."""
    options = ("--lines=1", "--quiet", "--no-pager", "--output=json", "--output-fields=JOB_RESULT")
    text = run("journalctl", *options, f"UNIT={unit}", "JOB_TYPE=start", "_PID=1").stdout
    record = json.loads(text or "{}")
    at = moment(journal.seconds_of(record)) if record else None
    return {"last": at, "result": journal.text_of(record.get("JOB_RESULT"))}


def watch(entries: str, release: str | None, now: float) -> dict[str, Any] | None:
    """Return how the last watch of a release ended, as `result`, `message` and `at`; None if it was not watched.

    The result is `began` while the watch may go on, and `cut off` if it has no end after its longest time.

    Args:
        entries: as for `last`.
        release: the one that serves.
        now: the time, in seconds since 1970.
    """
    for line in journal.lines_of(entries):
        fields = named(json.loads(line))
        if "watch" in fields and fields.get("release") == release:
            cut_off = fields["watch"] == "began" and now > float(fields.get("until", 0))
            result = "cut off" if cut_off else fields["watch"]
            return {"result": result, "message": fields.get("message", ""), "at": fields["at"]}
    return None


def drift(app: App, systemd: Systemd, release: Release, here: set[str]) -> list[str]:
    """Name everything that a deploy of a release would change on the host."""
    on_disk = labels_on_disk(app)
    words = {"SENTRY_RELEASE": "release", "SENTRY_ENVIRONMENT": "environment", "BOOTY_CONFIG_DIR": "app_config_dir"}
    words |= {name: f"setting {name}" for name in sorted({*settings(on_disk), *settings(release.labels)})}
    changes = [
        f"{word} {on_disk.get(name) or 'none'} → {release.labels.get(name) or 'none'}"
        for name, word in words.items()
        if (on_disk.get(name) or "") != (release.labels.get(name) or "")
    ]
    for name, text in release.units.items():
        if (installed := read(app.unit_files / name)) != text and name != app.candidate:
            changes.append(f"{name} {'differs' if installed else 'is not there'}")
    changes += [f"{name} is left over" for name in Programs(app, systemd).left_over(release)]
    problem = unsettled(app, systemd, release) or Programs(app, systemd).unsettled(release, here)
    return changes or [change for change in [problem] if change]
