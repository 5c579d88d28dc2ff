"""Show what hosts answered as one screen: a table for a terminal, JSON for machines, a page for a browser."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible import constants as C
from ansible.plugins.action import ActionBase
from ansible.utils import color
from ansible.utils.display import Display
from jinja2 import Environment, StrictUndefined
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

# From the best to the worst. What is `broken` does not serve what it should, or nobody knows.
LEVELS = ("ok", "look", "broken")
WORDS = {"ok": "in order", "look": "to look at", "broken": "broken"}
STYLES = {"ok": "green", "look": "yellow", "broken": "bold red"}
# Below this share a disk counts as nearly full.
LOW = 0.1
# What a cell says when there is nothing to say.
NOTHING = "–"  # noqa: RUF001
# Wide enough for every column; a pipe or a log has no width of its own.
WIDE = 150


def rows_of(answers: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Judge the answers of hosts, and return a row for each app of each host.

    A row has a `name` for a person: the host, and the app as well where the rows are of several apps.
    """
    rows = [row for host, answer in answers.items() for row in judge(host, answer)]
    several = len({row["app"] for row in rows if row["app"]}) > 1
    for row in rows:
        row["name"] = f"{row['host']} {row['app']}" if several and row["app"] else row["host"]
    return rows


def judge(host: str, answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Judge what a host answered.

    Args:
        host: its name.
        answer: the result of asking it: `apps`, or what Ansible says of a host that gave none.

    Returns:
        a row for each app of the host: its status with `host`, `app` (None for a host that gave no answer), `level`
        and `notes`, which say in words what does not fit.
    """
    if answer.get("unreachable"):
        note = f"can't be reached: {first_line(answer)}"
    elif answer.get("rc") == 127:  # the shell found no Python
        note = "has no Python, and so no Booty: run bootstrap.yml"
    elif "apps" not in answer:
        note = f"gives no answer: {first_line(answer)}"
    else:
        return [judge_app(host, app, status) for app, status in answer["apps"].items()]
    return [{"host": host, "app": None, "level": "broken", "notes": [note]}]


def judge_app(host: str, app: str, status: dict[str, Any]) -> dict[str, Any]:
    """Return the row of one app of a host."""
    if status["ready"]:
        problems = serving(app, status) + around(app, status)
    else:
        problems = [("broken", "has no Booty: run bootstrap.yml")]
    level = max((level for level, _ in problems), key=LEVELS.index, default="ok")
    return {"host": host, "app": app, "level": level, "notes": [note for _, note in problems], **status}


def first_line(answer: dict[str, Any]) -> str:
    """Return the gist of Ansible's message."""
    lines = str(answer.get("msg") or "no reason given").strip().splitlines()
    if answer.get("unreachable"):
        return lines[-1].removeprefix("Task failed: ").rpartition("reached over ssh: ")[2].strip()
    # A heading says nothing without what it heads.
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])


def serving(app: str, status: dict[str, Any]) -> list[tuple[str, str]]:
    """Say what does not fit in what a host serves."""
    memory, disk, health = status["memory"], status["disk"], status["health"]
    if not memory:
        if not disk:
            return [("broken", "has had no deploy yet")]
        again = f", started again {status['restarts']} times" if status.get("restarts") else ""
        return [("broken", f"serves nothing: {app}.service is {status['service']}{again}")]
    # In the middle of a deploy they may differ.
    worst = "look" if status["lease"] else "broken"
    found = [
        (worst, f"{name} in memory is {memory[name]}, on disk {(disk or {}).get(name) or 'none'}")
        for name in ("release", "environment")
        if memory[name] != (disk or {}).get(name)
    ]
    if health["status"] != 200:
        return [
            *found,
            ("broken", f"/health says {health['status'] or 'nothing'}: {health.get('reason', 'no reason')}"),
        ]
    found += [
        (worst, f"/health answers {name} {health.get(name)}, in memory is {memory[name]}")
        for name in ("release", "environment")
        if health.get(name) != memory[name]
    ]
    return found


def around(app: str, status: dict[str, Any]) -> list[tuple[str, str]]:
    """Say what a person should look at around what a host serves."""
    found = []
    if status["lease"]:
        found.append(("look", f"is held: {status['lease']}"))
    elif status["candidate"]:
        found.append(
            ("look", f"has a candidate left over: {status['candidate']['release']}; the next deploy clears it")
        )
    if status["memory"] and " of " in status.get("says", ""):  # some of its workers are missing
        found.append(("look", f"{app}.service is {status['says']}"))
    if status["memory"] and (fault := tracker_fault(status["tracker"])):
        found.append(("look", fault))
    if status["free"]["share"] < LOW:
        found.append(("look", f"has {size(status['free']['bytes'])} of disk left"))
    found += [("look", f"is not as it should be: {each}") for each in status["damaged"]]
    if (last := status["last"]) and not went_well(last):
        found.append(("look", f"{last['result']} on {last['at']}: {last['message'].splitlines()[0]}"))
    return found + [("look", f"drift: {change}") for change in status["drift"] or []]


def tracker_fault(tracker: dict[str, Any] | None) -> str | None:
    """Say why errors don't reach the tracker; None when they do, or none was sent yet."""
    if tracker is None:
        return "reports no errors: there is no SENTRY_DSN"
    if tracker["status"] in {None, 200}:
        return None
    lost = f", {tracker['dropped']} lost" if tracker["dropped"] else ""
    return f"errors don't reach the tracker: {tracker['status']}{lost}"


def size(count: float) -> str:
    """Return bytes as a person reads them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def ago(at: str | None, now: datetime) -> str:
    """Return how long ago a time was, in the largest unit that fits."""
    if at is None:
        return NOTHING
    seconds = (now - datetime.fromisoformat(at)).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def short(release: str | None) -> str:
    """Return as much of a SHA as tells it from others."""
    return (release or "none")[:9]


def brief(note: str) -> str:
    """Return a note with its SHAs as short as elsewhere on a screen."""
    return re.sub(r"\b([0-9a-f]{9})[0-9a-f]{31}\b", r"\1", note)


def cells(row: dict[str, Any], now: datetime) -> dict[str, tuple[str, bool]]:
    """Return a row's cells by their heading, each with whether it stands out."""
    if "ready" not in row:
        return dict.fromkeys(HEADINGS, (NOTHING, False))
    memory, disk, last = row["memory"] or {}, row["disk"] or {}, row["last"]
    # A service that runs has its release, or none; where nothing runs there is nothing to say.
    answers = memory and row["health"]["status"] == 200
    served = short(row["health"].get("release")) if answers else "nothing" if disk else NOTHING
    parted = memory.get("release") != disk.get("release")
    return {
        "serves": (served, served == "nothing"),
        "for": (ago(row["since"], now), False),
        "on disk": (short(disk.get("release")) if disk else NOTHING, parted),
        "in memory": (short(memory.get("release")) if memory else NOTHING, parted),
        "environment": (
            memory.get("environment") or disk.get("environment") or NOTHING,
            bool(memory) and memory.get("environment") != disk.get("environment"),
        ),
        "previous": (short(row["previous"]) if row["previous"] else NOTHING, False),
        "tracker": tracker_cell(row["tracker"]) if memory else (NOTHING, False),
        "free": (size(row["free"]["bytes"]), row["free"]["share"] < LOW),
        "last result": (f"{last.get('result', 'unknown')}, {ago(last['at'], now)} ago", not went_well(last))
        if last
        else (NOTHING, False),
    }


def tracker_cell(tracker: dict[str, Any] | None) -> tuple[str, bool]:
    """Return what there is to say of the tracker in a word."""
    if tracker is None:
        return "no DSN", True
    word = {None: "no event yet", 200: "accepts"}.get(tracker["status"], "fails")
    return word, word == "fails"


def went_well(last: dict[str, Any]) -> bool:
    """Tell whether the last deploy or rollback ended as it should; a record without a result is of one under way."""
    return bool(last.get("result", "switched") == "switched")


HEADINGS = ("serves", "for", "on disk", "in memory", "environment", "previous", "tracker", "free", "last result")
# What a narrow terminal does without, the first first; whatever does not fit is among the notes anyway.
EXPENDABLE = ("previous", "free", "last result", "tracker", "in memory", "environment")


def served(row: dict[str, Any]) -> str | None:
    """Return the release that a host answers with, `none` when it answers without; None when it does not answer."""
    health = row.get("health") or {}
    return health.get("release") or "none" if health.get("status") == 200 else None


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Count hosts by level, and releases by the hosts that serve them."""
    releases = Counter(release for row in rows if (release := served(row)))
    levels = Counter(row["level"] for row in rows)
    return {
        "hosts": len({row["host"] for row in rows}),
        "levels": {level: levels[level] for level in LEVELS},
        "releases": dict(releases.most_common()),
        "drifting": [row["name"] for row in rows if row.get("drift")],
    }


def table(rows: list[dict[str, Any]], now: datetime, width: int, colored: bool) -> str:
    """Return rows as a table for a terminal of so many columns; what does not fit follows each host in words."""
    file = io.StringIO()
    console = Console(
        file=file,
        width=width,
        force_terminal=colored,
        no_color=not colored,
        color_system="standard" if colored else None,
        highlight=False,
        legacy_windows=False,
    )
    headings = list(HEADINGS)
    made = grid(rows, now, headings)
    for heading in EXPENDABLE:
        if Measurement.get(console, console.options.update(width=1000), made).maximum <= width:
            break
        headings.remove(heading)
        made = grid(rows, now, headings)
    counted = summary(rows)
    levels = [f"{count} {WORDS[level]}" for level, count in counted["levels"].items() if count]
    console.print(Text(f"{counted['hosts']} host{'s' * (counted['hosts'] != 1)}: {', '.join(levels)}", style="bold"))
    console.print()
    console.print(made)
    noted = [row for row in rows if row["notes"]]
    if noted:
        console.print()
    for row in noted:
        for note in row["notes"]:
            console.print(Text(f"{row['name']} {brief(note)}", style=STYLES[row["level"]]), soft_wrap=True)
    return file.getvalue().rstrip("\n")


def grid(rows: list[dict[str, Any]], now: datetime, headings: list[str]) -> Table:
    """Return the table itself, with these of its columns."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    for heading in ("host", *headings):
        made.add_column(heading, no_wrap=True)
    for row in rows:
        told = cells(row, now)
        name = Text(row["name"], style=STYLES[row["level"]])
        made.add_row(name, *(Text(*styled(told[heading], row["level"])) for heading in headings))
    return made


def styled(cell: tuple[str, bool], level: str) -> tuple[str, str]:
    """Return a cell's text and its style: one that stands out has that of its host's level."""
    text, stands_out = cell
    return text, STYLES["look" if level == "ok" else level] if stands_out else ("dim" if text == NOTHING else "")


def page(template: str, rows: list[dict[str, Any]], now: datetime) -> str:
    """Return rows as one self-contained page; whatever hosts say is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    told = [{**row, "cells": cells(row, now), "notes": [*map(brief, row["notes"])]} for row in rows]
    return environment.from_string(template).render(
        rows=sorted(told, key=lambda row: -LEVELS.index(row["level"])),
        headings=HEADINGS,
        summary=summary(rows),
        words=WORDS,
        nothing=NOTHING,
        at=now,
        short=short,
    )


def mixed(rows: list[dict[str, Any]]) -> list[str]:
    """Name the releases and their hosts, of each environment of an app whose hosts serve several releases.

    The rows of these hosts are to look at.
    """
    environments: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        if release := served(row):
            releases = environments.setdefault((row["app"], row["health"].get("environment") or "no environment"), {})
            releases.setdefault(release, []).append(row)
    said = []
    for (_, environment), releases in environments.items():
        if len(releases) > 1:
            names = {one: ", ".join(row["name"] for row in hosts) for one, hosts in releases.items()}
            said.append(f"{environment} is on {len(names)} releases: {'; '.join(map(' on '.join, names.items()))}.")
            for row in (row for hosts in releases.values() for row in hosts):
                row["level"] = max(row["level"], "look", key=LEVELS.index)
                row["notes"] = [*row["notes"], f"serves one of {len(names)} releases of {environment}"]
    return said


def fault(rows: list[dict[str, Any]], mixture: list[str]) -> str | None:
    """Say why the exit status is not to be 0: a host is broken or drifts, or a fleet is on several releases."""
    broken = [row["name"] for row in rows if row["level"] == "broken"]
    drifting = [row["name"] for row in rows if row.get("drift")]
    said = [*mixture, "Deploy one: ansible-playbook deploy.yml -e app_release=<sha>"] if mixture else []
    if broken:
        said.append(f"Broken: {', '.join(broken)}.")
    if drifting:
        said.append(f"A deploy would change: {', '.join(drifting)}.")
    return " ".join(said) or None


class StatusAction(ActionBase):
    """Show `answers` by host in a `format`, on standard output or in a `file`; fail when one is not as it should be."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the `screen`."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, given = self.validate_argument_spec(
            {
                "answers": {"type": "dict", "required": True},
                "format": {"type": "str", "choices": ["table", "json", "html"], "default": "table"},
                "file": {"type": "path", "default": ""},
            }
        )
        now = datetime.now(UTC)
        rows = rows_of(given["answers"])
        mixture = mixed(rows)
        said = fault(rows, mixture)
        if given["format"] == "json":
            told = {"at": now.isoformat(timespec="seconds"), "summary": summary(rows), "hosts": rows, "message": said}
            screen = json.dumps(told, indent=2, ensure_ascii=False)
        elif given["format"] == "html":
            screen = page(Path(self._find_needle("templates", "status.html.j2")).read_text(), rows, now)
        else:
            colored = color.ANSIBLE_COLOR and not given["file"]
            screen = table(rows, now, Display().columns if colored else WIDE, colored)
        if given["file"]:
            Path(given["file"]).write_text(f"{screen}\n")
            screen = ""
        elif C.DEFAULT_STDOUT_CALLBACK != "booty.deploy.brief":  # only that one shows a screen
            Display().display(screen)
        return {**result, "screen": screen, "failed": bool(said), **({"msg": said} if said else {})}
