"""Show the answers of all hosts on one screen: a table for a terminal, JSON for programs, HTML for a browser."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from ansible import constants as C
from ansible.plugins.action import ActionBase
from ansible.utils import color
from ansible.utils.display import Display
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from . import view_programs
from .playbook import completed

# From the best to the worst. A `broken` host does not serve its release, or gave no answer.
LEVELS = ("ok", "look", "broken")
WORDS = {"ok": "in order", "look": "to look at", "broken": "broken"}
STYLES = {"ok": "green", "look": "yellow", "broken": "bold red"}
# A disk with a smaller share of free space is nearly full.
LOW = 0.1
# The text of an empty cell.
NOTHING = "–"  # noqa: RUF001
# The width for a pipe or a file, which has none of its own: enough columns for the whole table.
WIDE = 150


def rows_of(answers: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each app of each host.

    The `name` of a row is the host; if the rows are about several apps, it is the host and the app.
    """
    rows = [row for host, answer in answers.items() for row in judge(host, answer)]
    several = len({row["app"] for row in rows if row["app"]}) > 1
    for row in rows:
        row["name"] = f"{row['host']} {row['app']}" if several and row["app"] else row["host"]
    for app in sorted({row["app"] for row in rows if row["app"]}):
        lost = view_programs.lost(answers, app)
        for row in (row for row in rows if row["app"] == app and row["host"] in lost):
            note(row, lost[row["host"]])
    return rows


def note(row: dict[str, Any], notes: list[str]) -> None:
    """Add notes to a row, which is to look at then if it was in order."""
    row["level"] = max(row["level"], "look", key=LEVELS.index)
    row["notes"] = [*row["notes"], *notes]


def judge(host: str, answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a host.

    Args:
        host: the name of the host.
        answer: the result of the verb status: `apps`, or the error that Ansible reports.

    Returns:
        a row for each app of the host: the status of the app with `host`, `app` (None for a host that gave no answer),
        `level`, and the problems as `notes`.
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
    """Return the first line of Ansible's error message that has a reason."""
    lines = str(answer.get("msg") or "no reason given").strip().splitlines()
    if answer.get("unreachable"):
        return lines[-1].removeprefix("Task failed: ").rpartition("reached over ssh: ")[2].strip()
    # A first line that ends with a colon is a heading, so the next line is added.
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])


def serving(app: str, status: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the problems with the release that an app serves, each with its level."""
    memory, disk, health = status["memory"], status["disk"], status["health"]
    if not memory:
        if not disk:
            return [("broken", "has had no deploy yet")]
        again = f", started again {status['restarts']} times" if status.get("restarts") else ""
        return [("broken", f"serves nothing: {app}.service is {status['service']}{again}")]
    # During a deploy, the release in memory and the one on disk may differ.
    worst = "look" if status["lease"] else "broken"
    on_disk = {**memory, "release": None, "environment": None} if disk is None else disk
    problems = [
        (worst, f"{name} in memory is {memory[name] or 'none'}, on disk {on_disk[name] or 'none'}")
        for name in ("release", "environment", "config")
        if memory[name] != on_disk[name]
    ]
    if names := sorted({name for name, _ in {*memory["settings"].items()} ^ {*on_disk["settings"].items()}}):
        problems.append((worst, f"settings in memory differ from those on disk: {', '.join(names)}"))
    if health["reason"]:
        return [*problems, (worst if 0 < health["status"] < 500 else "broken", health["reason"])]
    problems += [
        (worst, f"it answers {name} {health.get(name)}, in memory is {memory[name]}")
        for name in ("release", "environment")
        if health.get(name) != memory[name]
    ]
    return problems


def around(app: str, status: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the other problems of an app and its host, each with its level."""
    problems = []
    if status["lease"]:
        problems.append(f"is held: {status['lease']}")
    elif status["candidate"]:
        problems.append(f"has a candidate left over: {status['candidate']['release']}; the next deploy clears it")
    if status["memory"] and re.match(r"serving with \d+ of \d+ workers", status.get("says", "")):
        problems.append(f"{app}.service is {status['says']}")
    if status["memory"] and (problem := tracker_problem(status["tracker"])):
        problems.append(problem)
    if status["free"]["share"] < LOW:
        problems.append(f"has {size(status['free']['bytes'])} of disk left")
    problems += [f"is not as it should be: {each}" for each in status["damaged"]]
    if (last := status["last"]) and not went_well(last):
        problems.append(f"{last['result']} on {last['at']}: {last['message'].splitlines()[0]}")
    if (watch := status.get("watch")) and (problem := WATCHED.get(watch["result"])):
        problems.append(problem.format(**watch))
    if status.get("outdated"):
        problems.append("runs a library that an upgrade has replaced on disk: deploy.yml -e app_restart=true")
    if status.get("new_secrets"):
        problems.append("secrets.env is newer than the running process: deploy.yml -e app_restart=true")
    problems += view_programs.problems(status)
    problems += [f"drift: {change}" for change in status["drift"] or []]
    return [*proxy_problems(status.get("proxy")), *(("look", problem) for problem in problems)]


def proxy_problems(proxy: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return the problems with the domains of an app, each with its level; none for an app without domains."""
    if not proxy:
        return []
    problems = [] if proxy["running"] else [("broken", "the proxy does not run: systemctl status 'booty-front@*'")]
    if proxy["maintenance"]:
        problems.append(("look", "is closed for maintenance"))
    if proxy["draining"]:
        problems.append(
            (
                "look",
                "a swap of the proxy is under way, as is normal: it takes 80 s, with long downloads up to an hour",
            )
        )
    for name, state in proxy["names"].items():
        if state["until"] is None:
            problems.append(("broken", state["problem"] if name in state["problem"] else f"{name}: {state['problem']}"))
            continue
        end = f"{datetime.fromtimestamp(state['until'], UTC):%Y-%m-%d %H:%M} UTC"
        if state["short"] or state["problem"]:
            reason = f": {state['problem']}" if state["problem"] else ""
            problems.append(("look", f"the certificate of {name} ends on {end}{reason}"))
    return problems


def tracker_problem(tracker: dict[str, Any] | None) -> str | None:
    """Return the problem that keeps errors from the tracker; None without one, or before the first event."""
    if tracker is None:
        return "reports no errors: there is no SENTRY_DSN"
    if tracker["status"] in {None, 200}:
        return None
    lost = f", {tracker['dropped']} lost" if tracker["dropped"] else ""
    return f"errors don't reach the tracker: {tracker['status']}{lost}"


def size(count: float) -> str:
    """Return a number of bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def ago(at: str | None, now: datetime) -> str:
    """Return the age of a time in the largest unit that fits."""
    if at is None:
        return NOTHING
    seconds = (now - datetime.fromisoformat(at)).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def short(release: str | None) -> str:
    """Return the first nine characters of a SHA."""
    return (release or "none")[:9]


def brief(note: str) -> str:
    """Return a note with each SHA shortened to nine characters."""
    return re.sub(r"\b([0-9a-f]{9})[0-9a-f]{31}\b", r"\1", note)


def cells(row: dict[str, Any], now: datetime) -> dict[str, tuple[str, bool]]:
    """Return the cells of a row by their headings, each with its text and whether it is highlighted."""
    if "ready" not in row:
        return dict.fromkeys(HEADINGS, (NOTHING, False))
    memory, disk, last = row["memory"] or {}, row["disk"] or {}, row["last"]
    # "nothing" is a problem: there is a release on disk, but the service does not answer.
    answers = memory and not row["health"]["reason"]
    served = short(row["health"].get("release")) if answers else "nothing" if disk else NOTHING
    differs = memory.get("release") != disk.get("release")
    return {
        "serves": (served, served == "nothing"),
        "for": (ago(row["since"], now), False),
        "on disk": (short(disk.get("release")) if disk else NOTHING, differs),
        "in memory": (short(memory.get("release")) if memory else NOTHING, differs),
        "environment": (
            memory.get("environment") or disk.get("environment") or NOTHING,
            bool(memory) and memory.get("environment") != disk.get("environment"),
        ),
        "previous": (short(row["previous"]) if row["previous"] else NOTHING, False),
        "tracker": tracker_cell(row["tracker"]) if memory else (NOTHING, False),
        "watch": watch_cell(row.get("watch")),
        "free": (size(row["free"]["bytes"]), row["free"]["share"] < LOW),
        "last result": (f"{last.get('result', 'unknown')}, {ago(last['at'], now)} ago", not went_well(last))
        if last
        else (NOTHING, False),
    }


def tracker_cell(tracker: dict[str, Any] | None) -> tuple[str, bool]:
    """Return the cell of the tracker."""
    if tracker is None:
        return "no DSN", True
    word = {None: "no event yet", 200: "accepts"}.get(tracker["status"], "fails")
    return word, word == "fails"


# The notes on a watch, by its result.
WATCHED = {
    "bad": "{message}",
    "blind": "{message}",
    "cut off": "its watch, begun on {at}, was cut off. To look again: ansible-playbook watch.yml",
}


def watch_cell(watch: dict[str, Any] | None) -> tuple[str, bool]:
    """Return the cell of the last watch of the release that serves."""
    if watch is None:
        return NOTHING, False
    return "goes on" if watch["result"] == "began" else watch["result"], watch["result"] in WATCHED


def went_well(last: dict[str, Any]) -> bool:
    """Return whether the last deploy or rollback succeeded, or is under way; a refused rollback leaves all in order."""
    refused = last.get("result") == "refused" and " goes back to " in last.get("by", "")
    return refused or last.get("result", "switched") == "switched"


HEADINGS = (
    "serves",
    "for",
    "on disk",
    "in memory",
    "environment",
    "previous",
    "tracker",
    "watch",
    "free",
    "last result",
)
DOMAIN_HEADINGS = ("domain", "certificate until")
# Columns to drop on a narrow terminal, in this order. The notes have the problems of all columns.
EXPENDABLE = ("previous", "free", "last result", "watch", "tracker", "in memory", "environment")


def served(row: dict[str, Any]) -> str | None:
    """Return the release that answers healthily, "none" if the answer has none; None without such an answer."""
    health = row.get("health")
    return health.get("release") or "none" if health and not health["reason"] else None


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the numbers of hosts by level and by release."""
    releases = Counter(release for row in rows if (release := served(row)))
    levels = Counter(row["level"] for row in rows)
    return {
        "hosts": len({row["host"] for row in rows}),
        "levels": {level: levels[level] for level in LEVELS},
        "releases": dict(releases.most_common()),
        "drifting": [row["name"] for row in rows if row.get("drift")],
    }


def numbers(rows: list[dict[str, Any]]) -> str:
    """Return in words how many hosts there are, and how many services if a host has several."""
    count = len({row["host"] for row in rows})
    hosts = f"{count} host{'s' * (count != 1)}"
    return hosts if len(rows) == count else f"{len(rows)} services on {hosts}"


def table(rows: list[dict[str, Any]], now: datetime, width: int, colored: bool) -> str:
    """Return rows as a table for a terminal of `width` columns, and the notes of all rows below it."""
    console, file = terminal(width, colored)
    shown = fitting(console, lambda headings: grid(rows, now, headings), HEADINGS, EXPENDABLE)
    counts = summary(rows)
    levels = [f"{count} {WORDS[level]}" for level, count in counts["levels"].items() if count]
    console.print(Text(f"{numbers(rows)}: {', '.join(levels)}", style="bold"))
    console.print()
    console.print(shown)
    if any(programs := [lines(row, now) for row in rows]):
        console.print()
        console.print(grid_of_lines(rows, programs, view_programs.HEADINGS))
    if any(domains := [domain_lines(row) for row in rows]):
        console.print()
        console.print(grid_of_lines(rows, domains, DOMAIN_HEADINGS))
    if any(row["notes"] for row in rows):
        console.print()
    for row in rows:
        for note in row["notes"]:
            console.print(Text(f"{row['name']} {brief(note)}", style=STYLES[row["level"]]), soft_wrap=True)
    return file.getvalue().rstrip("\n")


def terminal(width: int, colored: bool) -> tuple[Console, io.StringIO]:
    """Return a console of `width` columns, and the file that it writes to."""
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
    return console, file


def fitting(
    console: Console, build: Callable[[list[str]], Table], headings: Iterable[str], expendable: Iterable[str]
) -> Table:
    """Return a table that fits a console, without as many of the `expendable` headings as that takes."""
    kept = [*headings]
    shown = build(kept)
    for heading in expendable:
        if Measurement.get(console, console.options.update(width=1000), shown).maximum <= console.width:
            break
        kept.remove(heading)
        shown = build(kept)
    return shown


def columns(*headings: str) -> Table:
    """Return a table without rows."""
    lines = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    for heading in headings:
        lines.add_column(heading, no_wrap=True)
    return lines


def grid(rows: list[dict[str, Any]], now: datetime, headings: list[str]) -> Table:
    """Return the table with these columns."""
    lines = columns("host", *headings)
    for row in rows:
        by_heading = cells(row, now)
        name = Text(row["name"], style=STYLES[row["level"]])
        lines.add_row(name, *(Text(*styled(by_heading[heading], row["level"])) for heading in headings))
    return lines


def lines(row: dict[str, Any], now: datetime) -> list[dict[str, tuple[str, bool]]]:
    """Return the cells of the processes and timers of a row."""
    return view_programs.lines(row, now, ago, short, NOTHING)


def domain_lines(row: dict[str, Any]) -> list[dict[str, tuple[str, bool]]]:
    """Return the cells of the domains of a row; none for an app without domains."""
    names = (row.get("proxy") or {}).get("names", {})
    return [
        {
            "domain": (name, False),
            "certificate until": (f"{datetime.fromtimestamp(state['until'], UTC):%Y-%m-%d}", state["short"])
            if state["until"]
            else ("none", True),
        }
        for name, state in names.items()
    ]


def grid_of_lines(
    rows: list[dict[str, Any]], lines_of_rows: list[list[dict[str, tuple[str, bool]]]], headings: Iterable[str]
) -> Table:
    """Return the table of the processes and timers, or of the domains, of all rows."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    for heading in ("host", *headings):
        table.add_column(heading, no_wrap=True)
    for row, of_row in zip(rows, lines_of_rows, strict=True):
        for by_heading in of_row:
            name = Text(row["name"], style=STYLES[row["level"]])
            cells = (Text(*styled(by_heading[heading], row["level"])) for heading in headings)
            table.add_row(name, *cells)
    return table


def styled(cell: tuple[str, bool], level: str) -> tuple[str, str]:
    """Return the text and the style of a cell: a highlighted cell has the color of its row's level."""
    text, highlighted = cell
    return text, STYLES["look" if level == "ok" else level] if highlighted else ("dim" if text == NOTHING else "")


def rendered(template: Path, **values: Any) -> str:
    """Return a self-contained HTML page; texts from hosts are escaped."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(nothing=NOTHING, short=short, **values)


def page(template: Path, rows: list[dict[str, Any]], now: datetime) -> str:
    """Return rows as an HTML page."""
    with_cells = [
        {
            **row,
            "cells": cells(row, now),
            "tables": {"Processes and timers": lines(row, now), "Domains": domain_lines(row)},
            "notes": [*map(brief, row["notes"])],
        }
        for row in rows
    ]
    return rendered(
        template,
        rows=sorted(with_cells, key=lambda row: -LEVELS.index(row["level"])),
        headings=HEADINGS,
        tables={"Processes and timers": view_programs.HEADINGS, "Domains": DOMAIN_HEADINGS},
        summary=summary(rows),
        numbers=numbers(rows),
        words=WORDS,
        at=now,
    )


def mixed(rows: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for each environment of an app whose hosts serve several releases.

    The rows of these hosts get a note and at least the level `look`.
    """
    environments: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        if release := served(row):
            releases = environments.setdefault((row["app"], row["health"].get("environment") or "no environment"), {})
            releases.setdefault(release, []).append(row)
    sentences = []
    for (_, environment), releases in environments.items():
        if len(releases) > 1:
            names = {release: ", ".join(row["name"] for row in hosts) for release, hosts in releases.items()}
            sentences.append(
                f"{environment} is on {len(names)} releases: {'; '.join(map(' on '.join, names.items()))}."
            )
            for row in (row for hosts in releases.values() for row in hosts):
                note(row, [f"serves one of {len(names)} releases of {environment}"])
    return sentences


def failure(rows: list[dict[str, Any]], mixture: list[str]) -> str:
    """Return the message if a host is broken or drifts, or an environment has several releases; "" otherwise."""
    broken = [row["name"] for row in rows if row["level"] == "broken"]
    drifting = [row["name"] for row in rows if row.get("drift")]
    sentences = [*mixture, "Deploy one: ansible-playbook deploy.yml -e app_release=<sha>"] if mixture else []
    if broken:
        sentences.append(f"Broken: {', '.join(broken)}.")
    if drifting:
        sentences.append(f"A deploy would change: {', '.join(drifting)}.")
    return " ".join(sentences)


class ScreenAction(ActionBase):
    """Show the `answers` of hosts in a `format`, on standard output or in a `file`."""

    SPEC: ClassVar[dict[str, Any]] = {
        "answers": {"type": "dict", "required": True},
        "format": {"type": "str", "choices": ["table", "json", "html"], "default": "table"},
        "file": {"type": "path", "default": ""},
    }

    def size(self, file: str) -> tuple[int, bool]:
        """Return the width of a table for a file, or for standard output if that is "", and whether it is colored."""
        colored = color.ANSIBLE_COLOR and not file
        return Display().columns if colored else WIDE, colored

    def template(self, name: str) -> Path:
        """Return the path of a template of the role."""
        return Path(self._find_needle("templates", name))

    def show(self, screen: str, file: str, message: str) -> dict[str, Any]:
        """Return the result with the `screen`, which goes to the file if there is one; fail with a message."""
        if file:
            Path(file).write_text(f"{screen}\n")
            screen = ""
        elif C.DEFAULT_STDOUT_CALLBACK != "booty.deploy.brief":  # another callback does not show a `screen`
            Display().display(screen)
        return {"screen": screen, "failed": bool(message), **({"msg": message} if message else {})}


class StatusAction(ScreenAction):
    """Show the status of hosts."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the `screen`; fail with the message of `failure`."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(self.SPEC)
        now = datetime.now(UTC)
        rows = rows_of(arguments["answers"])
        message = completed(failure(rows, mixed(rows)), task_vars or {})
        if arguments["format"] == "json":
            at = now.isoformat(timespec="seconds")
            document = {"at": at, "summary": summary(rows), "hosts": rows, "message": message or None}
            screen = json.dumps(document, indent=2, ensure_ascii=False)
        elif arguments["format"] == "html":
            screen = page(self.template("status.html.j2"), rows, now)
        else:
            screen = table(rows, now, *self.size(arguments["file"]))
        return {**result, **self.show(screen, arguments["file"], message)}
