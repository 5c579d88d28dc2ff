"""Read the deploys of a host in its journal."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from booty_host import HostError, journal
from booty_host.app import App
from booty_host.logs import JOURNAL, WHOLE, newer_than, unknown_time

# The journal's fields of a booty-deploy record, by their names in the answer. Records of older versions have no run.
FIELDS = {"app": "BOOTY_APP", "run": "BOOTY_RUN", **journal.FIELDS}


def history(app: App, lines: int, since: str, every: bool, check: bool) -> dict[str, Any]:
    """Return the records of the last deploys, rollbacks and refusals, the newest first.

    Args:
        app: the app.
        lines: the number of runs that history.yml shows as rows.
        since: as for the verb logs.
        every: whether the records of all apps of the host are returned.
        check: makes no difference, since the call changes nothing.

    Returns:
        `records`: the FIELDS that a record has, and its time as `at`, in seconds since 1970; `begins`, the time of the
        oldest record in the journal, None for an empty one; `older`, whether the journal may have records before these.

    Raises:
        HostError: the time is unknown.
    """
    fields = f"--output-fields={','.join(FIELDS.values())}"
    matches = [*journal.OURS, *([] if every else [f"BOOTY_APP={app.name}"])]
    records: list[dict[str, Any]] = []
    runs: set[str] = set()
    older = bool(since)
    with subprocess.Popen(
        [*JOURNAL, WHOLE, "--reverse", fields, *newer_than(since), *matches],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as reader:
        assert reader.stdout
        assert reader.stderr
        for line in reader.stdout:
            record = json.loads(line)
            named = journal.texts(record, FIELDS)
            if not {"run", "result"} & {*named}:
                continue
            # watch.yml alone is no row. Records that name no run are put together by history.yml, so they don't count.
            if "run" in named and "watch" not in named:
                runs.add(named["run"])
            if len(runs) > lines:
                older = True
                reader.kill()
                break
            records.append({**named, "at": journal.seconds_of(record)})
        problem = reader.stderr.read()
    if reader.returncode > 0:
        raise HostError(unknown_time(since, problem))
    # The first line that journalctl would print.
    with subprocess.Popen([*JOURNAL, fields], stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout
        first = reader.stdout.readline()
        reader.kill()
    begins = journal.seconds_of(json.loads(first)) if first else None
    return {"changed": False, "records": records, "begins": begins, "older": older}
