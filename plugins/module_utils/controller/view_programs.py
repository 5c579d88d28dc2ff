"""Judge and show the processes and timers in the answers of hosts."""

from __future__ import annotations

from datetime import datetime
from typing import Any

HEADINGS = ("process", "runs", "for", "restarts", "state", "last run", "next run")


def problems(status: dict[str, Any]) -> list[str]:
    """Return the problems with the processes and timers of an app on a host."""
    release = (status["memory"] or {}).get("release")
    here = [program for program in status.get("programs", []) if program["here"]]
    return [
        problem
        for program in here
        for problem in (of_timer(program) if program["kind"] == "timer" else of_process(program, release))
    ]


def of_process(process: dict[str, Any], release: str | None) -> list[str]:
    """Return the problems with a process, whose instances should run this release."""
    instances = [instance for instance in process["instances"] if instance["state"] != "ending"]
    active = [instance for instance in instances if instance["state"] == "active"]
    found = [
        f"{title(each['unit'])} runs {each['release'] or 'an unknown release'}, and not the service's"
        for each in active
        if each["release"] != release
    ]
    found += [
        f"{title(each['unit'])} is {each['state']}, started again {each['restarts']} times"
        for each in instances
        if each not in active
    ]
    if len(active) != process["count"]:
        found.append(f"{process['name']} runs {len(active)} times, and should {process['count']} times")
    return found


def of_timer(timer: dict[str, Any]) -> list[str]:
    """Return the problems with a timer."""
    found = [] if timer["active"] else [f"the timer {timer['name']} is not active"]
    if failed(timer):
        found.append(f"the last run of the timer {timer['name']} failed, {timer['last']}")
    return found


def failed(timer: dict[str, Any]) -> bool:
    """Return whether the last run of a timer failed, by the result of its job in systemd."""
    return timer["result"] not in {"", "done"}


def lost(answers: dict[str, dict[str, Any]], app: str) -> dict[str, list[str]]:
    """Return by host the problems with processes and timers that one host alone should have.

    Args:
        answers: the results of the verb status, by host.
        app: the app.
    """
    programs = {
        host: {program["name"]: program for program in answer["apps"][app].get("programs", [])}
        for host, answer in answers.items()
        if app in answer.get("apps", {})
    }
    found: dict[str, list[str]] = {}
    for host, by_name in programs.items():
        for name, program in by_name.items():
            if program["host"] is None:
                continue
            having = [other for other, each in programs.items() if each.get(name, {}).get("here")]
            if program["here"] and len(having) > 1:
                found.setdefault(host, []).append(f"{name} is on {' and on '.join(having)}, and should be on one host")
            elif not having and program["host"] in answers:
                found.setdefault(host, []).append(f"{name} is on {program['host']} alone, which gives no answer")
            elif not having:
                where = f"on {program['host']}, which was not asked" if program["host"] else "on no host"
                found.setdefault(host, []).append(f"{name} is {where}")
    return found


def title(unit: str) -> str:
    """Return an instance without the suffix of systemd."""
    return unit.removesuffix(".service")


def lines(
    status: dict[str, Any], now: datetime, ago: Any, short: Any, nothing: str
) -> list[dict[str, tuple[str, bool]]]:
    """Return a line for each process and timer of a host: its cells by their headings, as `view.cells` does.

    Args:
        status: the status of an app on the host.
        now: the time.
        ago: returns the age of a time in words.
        short: returns the beginning of a SHA.
        nothing: the text of an empty cell.
    """
    release = (status.get("memory") or {}).get("release")
    found = []
    for program in (each for each in status.get("programs", []) if each["here"]):
        empty = dict.fromkeys(HEADINGS, (nothing, False))
        if program["kind"] == "timer":
            last = f"{ago(program['last'], now)} ago" if program["last"] else nothing
            found.append(
                {
                    **empty,
                    "process": (program["name"], False),
                    "runs": (short(program["release"]) if program["release"] else nothing, False),
                    "state": ("waits" if program["active"] else "not active", not program["active"]),
                    "last run": (f"{last}, failed" if failed(program) else last, failed(program)),
                    "next run": (f"in {ago(now.isoformat(), datetime.fromisoformat(program['next']))}", False)
                    if program["next"]
                    else (nothing, False),
                }
            )
            continue
        found += [
            {
                **empty,
                "process": (f"{program['name']}@{number(each['unit'])}", False),
                "runs": (short(each["release"]), each["state"] == "active" and each["release"] != release),
                "for": (ago(each["since"], now), False),
                "restarts": (str(each["restarts"]), each["restarts"] > 0),
                "state": (each["state"], each["state"] not in {"active", "ending"}),
            }
            for each in program["instances"]
        ]
    return found


def number(unit: str) -> str:
    """Return the number of an instance."""
    return title(unit).rpartition("@")[2]
