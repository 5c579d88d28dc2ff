"""Check an app's processes and timers, choose those of the inventory or of the commit, and write them for units."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

NAME = r"[a-z][a-z0-9-]{0,30}"
# Units of an app, identifiers in its journal, names that logs.yml gives to lines, and units of Booty itself.
RESERVED = (
    "acme",
    "candidate",
    "command",
    "deploy",
    "firewall",
    "front",
    "http",
    "peers",
    "post-deploy",
    "release",
    "run",
    "sandbox",
    "shell",
    "systemd",
    "undo",
    "web",
)
SIGNALS = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGABRT")
MOST_INSTANCES = 100
LONGEST_STOP = 86_400
# The characters of systemd.time(7), "Calendar events", which include those of a time zone.
SCHEDULE = r"[A-Za-z0-9*,./:~ +_-]+"
CRON = r"@(hourly|daily|weekly|monthly|yearly|annually|midnight|reboot)|(\S*[\d*/,-]\S*\s+){4}[\w*/,-]+"


def is_number(value: Any, least: int, most: int) -> bool:
    """Return whether a value is a whole number within bounds."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_line(value: Any) -> bool:
    """Return whether a value is a text of one line."""
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def is_schedule(value: Any) -> bool:
    """Return whether a value may be a calendar event of systemd; the host's own systemd has the last word."""
    return is_line(value) and bool(re.fullmatch(SCHEDULE, value)) and not re.fullmatch(CRON, value.strip())


# Each key of a process or a timer: its default (None if it must be there), the check, and what to write.
Key = tuple[Any, Callable[[Any], bool], str]
COMMAND: Key = (None, is_line, "a command of one line for /bin/bash")
ONE_HOST = (lambda value: isinstance(value, bool), "true or false")
PROCESS: dict[str, Key] = {
    "command": COMMAND,
    "count": (1, lambda value: is_number(value, 0, MOST_INSTANCES), f"a whole number, 0 to {MOST_INSTANCES}"),
    "stop_signal": ("SIGTERM", lambda value: value in SIGNALS, f"one of {', '.join(SIGNALS)}"),
    "stop_seconds": (
        60,
        lambda value: is_number(value, 1, LONGEST_STOP),
        f"a whole number of seconds, 1 to {LONGEST_STOP}",
    ),
    "one_host": (False, *ONE_HOST),
}
TIMER: dict[str, Key] = {
    "command": COMMAND,
    "schedule": (
        None,
        is_schedule,
        'a time of systemd\'s calendar, in quotes, such as "03:00", "Mon *-*-* 03:00" or "*:0/15" (not cron\'s format;'
        " to try one: systemd-analyze calendar)",
    ),
    "one_host": (True, *ONE_HOST),
}


def table(keys: Mapping[str, Key], value: Any) -> dict[str, dict[str, Any]]:
    """Return processes or timers with all of their keys, sorted by name.

    Args:
        keys: PROCESS or TIMER.
        value: a table for each name; for a process also its command alone.

    Raises:
        ValueError: a name or a value can't be one; the message completes the sentence "write …".
    """
    if not isinstance(value, dict):
        raise ValueError("a table with a name for each, such as {worker: {command: celery -A shop worker}}")
    entries = {}
    for name, entry in value.items():
        if not isinstance(name, str) or not re.fullmatch(NAME, name):
            raise ValueError(
                f"a name of at most 31 lower-case letters, digits and dashes that begins with a letter, in place of"
                f" {str(name)[:40]!r}"
            )
        if name in RESERVED:
            raise ValueError(f"another name than {name}, which has a meaning of its own. So have {', '.join(RESERVED)}")
        given = {"command": entry} if isinstance(entry, str) else entry
        if not isinstance(given, dict):
            raise ValueError(f"for {name} a table with a command")
        if unknown := [str(key) for key in given if key not in keys]:
            raise ValueError(f"for {name} only {', '.join(keys)}, and no {unknown[0][:40]!r}")
        complete = {key: given.get(key, default) for key, (default, _, _) in keys.items()}
        for key, (_, holds, write) in keys.items():
            if not holds(complete[key]):
                raise ValueError(f"for {name}, as its {key}, {write}")
        entries[name] = complete
    return dict(sorted(entries.items()))


def processes(value: Any) -> dict[str, dict[str, Any]]:
    """Return the processes of an app; see `table`."""
    return table(PROCESS, value)


def timers(value: Any) -> dict[str, dict[str, Any]]:
    """Return the timers of an app; see `table`."""
    return table(TIMER, value)


def chosen(options: Mapping[str, Any], description: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the processes and the timers of a release: those of the inventory, or else those of its commit.

    Args:
        options: the options of the role app.
        description: the description of the app in the commit, or the manifest of the release.
    """
    of_commit = description.get("processes", {}), description.get("timers", {})
    return options["app_processes"] or of_commit[0], options["app_timers"] or of_commit[1]


def escaped(text: str) -> str:
    """Return a text as it stands between double quotes in a command of a unit; see systemd.service(5)."""
    for character, twice in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        text = text.replace(character, twice)
    return text


def clashes(options: Mapping[str, Any], description: Mapping[str, Any]) -> list[str]:
    """Return a problem for each name that is both a process and a timer; the arguments are those of `chosen`."""
    both = set.intersection(*map(set, chosen(options, description)))
    return [f"{name} is both a process and a timer of the app. Give one of them another name." for name in sorted(both)]
