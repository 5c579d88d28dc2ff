"""Show the last deploys, rollbacks and refusals of the fleet, from the journals of its hosts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from .logs import problem
from .notify import outcome
from .view import NOTHING, STYLES, ScreenAction, columns, fitting, rendered, short, terminal

HEADINGS = ("when", "app", "who", "what", "release", "from", "hosts", "ended", "watch", "took")
# Columns to drop on a narrow terminal, in this order.
EXPENDABLE = ("took", "from", "watch", "app")
# Records of versions whose records name no run are of one run if they are alike and no more seconds apart.
APART = 3600
# The level of a row, by the word in its column `ended` or `watch`; others are in order.
LEVELS = {
    **dict.fromkeys(("mixed", "went back", "unknown", "bad"), "broken"),
    **dict.fromkeys(("not switched", "refused", "blind"), "look"),
}


def runs(answers: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each run, the newest first, from the answers of hosts to the verb history."""
    records = [(record["at"], host, record) for host, answer in answers.items() for record in answer.get("records", [])]
    found: list[dict[str, Any]] = []
    for at, host, record in sorted(records, key=lambda each: each[:2]):
        who, verb, release, before = about(record)
        began = at - float(record.get("seconds", 0))
        key = {"app": record.get("app", ""), "who": who, "verb": verb, "release": release}
        run = record.get("run")
        for row in reversed(found):
            if (run and row["run"] == run) or (not {run, row["run"]} - {None} and alike(row, key, began)):
                break
        else:
            row = {**key, "run": run, "at": began, "from": [], "states": {}, "watch": None}
            found.append(row)
        row["end"] = at
        if record.get("watch"):
            row["watch"] = record["watch"]
        else:
            row["states"][host] = record.get("result", "under way")
        if before and record.get("result") != "taken back":
            row["from"].append(before)
    # watch.yml alone makes a run without a cutover.
    return [finished(row) for row in reversed(found) if row["states"]]


def about(record: dict[str, Any]) -> tuple[str, str, str, str]:
    """Return who made a record, the verb of the run, the release that it is about, and the one that served before."""
    who, _, what = record.get("by", "").partition(" ")
    release, before = record.get("release", ""), record.get("from", "")
    if record.get("result") == "taken back":  # the record names the release that the host went back to
        release, before = before, release
    if record.get("result") == "removed":
        return who, "remove", release, release
    return who, "rollback" if what.startswith("goes back") else "deploy", release, before


def alike(row: dict[str, Any], key: dict[str, str], began: float) -> bool:
    """Return whether a record that names no run is of the run of a row."""
    return key == {name: row[name] for name in key} and began - row["end"] < APART


def finished(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as the JSON document has it."""
    by_state: dict[str, list[str]] = {}
    for host, state in sorted(row["states"].items()):
        by_state.setdefault(state, []).append(host)
    whole = next(iter(by_state)) if len(by_state) == 1 else ""
    return {
        "at": datetime.fromtimestamp(row["at"], UTC).isoformat(timespec="seconds"),
        "app": row["app"],
        "who": row["who"],
        "verb": row["verb"],
        "release": row["release"],
        "from": Counter(row["from"]).most_common(1)[0][0] if row["from"] else None,
        "hosts": by_state,
        "result": whole if whole in {"refused", "removed"} else outcome(set(by_state)),
        "watch": row["watch"],
        "seconds": round(row["end"] - row["at"], 1),
    }


def cells(row: dict[str, Any]) -> dict[str, str]:
    """Return the cells of a row by their headings."""
    hosts = [host for of_state in row["hosts"].values() for host in of_state]
    return {
        "when": datetime.fromisoformat(row["at"]).strftime("%Y-%m-%d %H:%M"),
        "app": row["app"],
        "who": row["who"],
        "what": row["verb"],
        "release": short(row["release"]) if row["release"] else NOTHING,
        "from": short(row["from"]) if row["from"] else NOTHING,
        "hosts": hosts[0] if len(hosts) == 1 else str(len(hosts)),
        "ended": row["result"],
        "watch": row["watch"] or NOTHING,
        "took": f"{row['seconds']:.0f} s",
    }


def level(row: dict[str, Any]) -> str:
    """Return the worst level of a row."""
    levels = [LEVELS.get(row[name], "ok") for name in ("result", "watch")]
    return max(levels, key=("ok", "look", "broken").index)


def headings_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Return the headings; without the app if there is only one."""
    several = len({row["app"] for row in rows}) > 1
    return [heading for heading in HEADINGS if several or heading != "app"]


def table(rows: list[dict[str, Any]], remarks: list[str], width: int, colored: bool) -> str:
    """Return rows as a table for a terminal of `width` columns, and the remarks below it."""
    console, file = terminal(width, colored)
    headings = headings_of(rows)

    def build(kept: list[str]) -> Table:
        lines = columns(*kept)
        for row in rows:
            style = STYLES[level(row)] if level(row) != "ok" else ""
            lines.add_row(*(Text(cells(row)[heading], style=style * (heading == "ended")) for heading in kept))
        return lines

    console.print(fitting(console, build, headings, [name for name in EXPENDABLE if name in headings]))
    for row in (row for row in rows if len(row["hosts"]) > 1):
        states = "; ".join(f"{state}: {', '.join(hosts)}" for state, hosts in row["hosts"].items())
        console.print(Text(f"{cells(row)['when']} {states}"), soft_wrap=True)
    for remark in remarks:
        console.print(Text(remark), soft_wrap=True)
    return file.getvalue().rstrip("\n")


def page(template: Path, rows: list[dict[str, Any]], remarks: list[str], now: datetime) -> str:
    """Return rows as an HTML page."""
    with_cells = [{**row, "cells": cells(row), "level": level(row)} for row in rows]
    return rendered(template, rows=with_cells, headings=headings_of(rows), remarks=remarks, at=now)


def limits(answers: dict[str, dict[str, Any]], complete: bool) -> Iterator[str]:
    """Yield a remark on what the journals do not keep.

    Args:
        answers: the answers of hosts to the verb history.
        complete: whether there are as many runs as were asked for.
    """
    begins = sorted(answer["begins"] for answer in answers.values() if answer.get("begins"))
    if begins and not complete:
        first, last = (f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}" for at in (begins[0], begins[-1]))
        since = f"on {first}" if first == last else f"between {first} and {last}"
        nothing = "" if any(answer.get("older") for answer in answers.values()) else " They have no older deploys."
        yield f"The journals of the hosts begin {since} (UTC).{nothing}"


class HistoryAction(ScreenAction):
    """Show the last runs of hosts."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the `screen`; fail if a host gave no answer, and name it."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec({**self.SPEC, "lines": {"type": "int", "required": True}})
        answers, now = arguments["answers"], datetime.now(UTC)
        rows = runs(answers)[: arguments["lines"]]
        message = "\n".join(f"{host} {reason}" for host, answer in answers.items() if (reason := problem(answer)))
        remarks = [*limits(answers, len(rows) == arguments["lines"]), *message.splitlines()]
        if arguments["format"] == "json":
            document = {
                "at": now.isoformat(timespec="seconds"),
                "runs": rows,
                "remarks": remarks,
                "message": message or None,
            }
            screen = json.dumps(document, indent=2, ensure_ascii=False)
        elif arguments["format"] == "html":
            screen = page(self.template("history.html.j2"), rows, remarks, now)
        else:
            screen = table(rows, remarks, *self.size(arguments["file"]))
        return {**result, **self.show(screen, arguments["file"], message)}
