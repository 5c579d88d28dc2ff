"""Read the deploys of a host in its journal."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from booty_host import HostError
from booty_host.app import App
from booty_host.logs import JOURNAL, newer_than, unknown_time

# The journal's fields of a booty-deploy record, by their names in the answer. Records of older versions have no run.
FIELDS = {
    "app": "BOOTY_APP",
    "run": "BOOTY_RUN",
    "result": "BOOTY_RESULT",
    "release": "BOOTY_RELEASE",
    "from": "BOOTY_FROM",
    "by": "BOOTY_BY",
    "seconds": "BOOTY_SECONDS",
    "watch": "BOOTY_WATCH",
}


def history(app: App, lines: int, since: str, every: bool, check: bool) -> dict[str, Any]:
    """Return the records of the last deploys, rollbacks and refusals, the newest first.

    Args:
        app: the app.
        lines: the number of runs.
        since: as for the verb logs.
        every: whether the records of all apps of the host are returned.
        check: makes no difference, since the call changes nothing.

    Returns:
        `records`: the FIELDS that a record has, and its time as `at`, in seconds since 1970; `begins`, the time of the
        oldest record in the journal, None for an empty one.

    Raises:
        HostError: the time is unknown.
    """
    fields = f"--output-fields={','.join(FIELDS.values())}"
    matches = ["SYSLOG_IDENTIFIER=booty-deploy", *([] if every else [f"BOOTY_APP={app.name}"])]
    records: list[dict[str, Any]] = []
    runs: set[str] = set()
    with subprocess.Popen(
        [*JOURNAL, "--reverse", fields, *newer_than(since), *matches],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as journal:
        assert journal.stdout
        assert journal.stderr
        for line in journal.stdout:
            record = json.loads(line)
            # The journal writes a value that is not text as a list of bytes.
            named = {name: record[field] for name, field in FIELDS.items() if isinstance(record.get(field), str)}
            if not {"run", "result"} & {*named}:
                continue
            # A record of an older version counts as a run of its own.
            runs.add(named.get("run", record["__CURSOR"]))
            if len(runs) > lines:
                journal.kill()
                break
            records.append({**named, "at": seconds_of(record)})
        problem = journal.stderr.read()
    if journal.returncode > 0:
        raise HostError(unknown_time(since, problem))
    # The first line that journalctl would print.
    with subprocess.Popen([*JOURNAL, fields], stdout=subprocess.PIPE, text=True) as journal:
        assert journal.stdout
        first = journal.stdout.readline()
        journal.kill()
    return {"changed": False, "records": records, "begins": seconds_of(json.loads(first)) if first else None}


def seconds_of(record: dict[str, Any]) -> float:
    """Return the time of a record, in seconds since 1970."""
    return int(record["__REALTIME_TIMESTAMP"]) / 1_000_000
