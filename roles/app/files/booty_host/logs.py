"""Read an app's lines in the host's journal: of its service, candidate, processes and commands, and of its deploys."""

from __future__ import annotations

import json
import re
import select
import subprocess
import time
from typing import Any

from booty_host import HostError, failures, journal, programs
from booty_host.app import App, installed
from booty_host.processes import JOURNALCTL, run_head
from booty_host.systemd import Systemd

# All times are in UTC.
JOURNAL = ("env", "TZ=UTC", *JOURNALCTL, "--output=json")
# Without this option, journalctl reads 4 KB of a field, and writes null for a longer one.
WHOLE = "--all"
TOO_LONG = "[A line of more than 4 KB is left out: it, or another one beside it, is too long to be shown.]"
FIELDS = "--output-fields=MESSAGE,SYSLOG_IDENTIFIER,_SYSTEMD_UNIT,UNIT,_PID,_UID"
# An answer has at most so many bytes of messages.
LIMIT = 4_000_000
# What is read of the values of a field of the journal, in bytes, and the number of an app's values that are used.
READ, MOST = 1_000_000, 200
# The name of a process or timer.
PROCESS = r"[a-z][a-z0-9-]{0,30}"
# What the host program runs for an app, by its names in the journal.
COMMANDS = ("run", "release", "post-deploy")
# Booty's own identifiers and units. They look like processes of an app with the name `booty`.
RESERVED = re.compile(r"booty-(acme|deploy|firewall|front|http|peers|undo)\b")


def logs(
    app: App, lines: int, since: str, process: str, after: str, wait: float, limit: int = LIMIT, *, check: bool
) -> dict[str, Any]:
    """Return an app's lines, the oldest first.

    Args:
        app: the app.
        lines: how many of the last lines.
        since: a time for journalctl, in UTC, or an age such as `10min`; "" for any age.
        process: `web`, `deploy`, or the name of a process; "" for all.
        after: `after` of an earlier answer: return only newer lines.
        wait: how long to wait for a newer line, in seconds.
        limit: the largest number of bytes of messages.
        check: makes no difference, since the call changes nothing.

    Returns:
        `records`, each a list: the time in microseconds since 1970, the process, the message; `after`, for the next
        call; `cut`, whether lines are left out that are newer than `since`, or that would exceed `limit`; `others`, the
        processes that have lines here, if `process` has none.

    Raises:
        HostError: the time is unknown.
    """
    sources = sources_of(app)
    # A host may have no lines of a process yet, such as one that runs on another host.
    unknown = sorted(sources) if process and process not in sources else []
    none = [[f"SYSLOG_IDENTIFIER={app.name}-{process}"]]
    chosen = [sources.get(process, none)] if process else sources.values()
    matches = [match for source in chosen for alternative in source for match in (*alternative, "+")]
    command = [*JOURNAL, FIELDS, *matches[:-1]]
    if after:
        text, whole = follow([*command, WHOLE, after], wait, limit)
        text, cut = text if whole else follow([*command, after], wait, limit)[0], False
    else:
        # Together with `--since`, `--lines` alone means the first lines.
        command += ["--reverse", f"--lines={lines + 1}", *newer_than(since)]
        every, problem, cut = latest([*command, WHOLE], limit)
        if problem:
            every, problem, cut = latest(command, limit)
        if problem:
            raise HostError(unknown_time(since, problem))
        text, cut = "\n".join(every[-lines:]), cut or (bool(since) and len(every) > lines)
    found = [json.loads(line) for line in text.split("\n") if line]
    records, size = [], 0
    for record in reversed(found):
        text = TOO_LONG if record.get("MESSAGE", "") is None else journal.text_of(record.get("MESSAGE"))
        message = "\n".join(failures.unfolded(text))
        size += len(message)
        if size > limit:
            cut = True
            break
        records.append([int(record["__REALTIME_TIMESTAMP"]), label(app, record), message])
    if found:
        after = f"--after-cursor={found[-1]['__CURSOR']}"
    after = after or f"--since=@{int(time.time())}"
    return {"records": records[::-1], "after": after, "cut": cut, "others": unknown}


def latest(command: list[str], limit: int) -> tuple[list[str], str, bool]:
    """Return the lines that a journalctl prints, the oldest first; why there are none; and whether some are left out.

    Args:
        command: a journalctl that prints the newest line first.
        limit: as for `logs`. A line of JSON that is longer makes the answer worthless, since older ones are behind it.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        assert reader.stdout
        assert reader.stderr
        # A record has other fields too, and JSON may write a byte of a message as four.
        output = reader.stdout.read(10 * limit)
        if cut := bool(reader.stdout.read(1)):
            reader.kill()
        problem = reader.stderr.read().decode()
    end = output.rfind(b"\n") + 1
    if cut and len(output) - end > limit:
        return [], "a line is too long", True
    return output[:end].decode().split("\n")[-2::-1], problem if reader.returncode > 0 else "", cut


def newer_than(since: str) -> list[str]:
    """Return the options of journalctl that leave out older records; none for ""."""
    # A number and a unit is an age.
    age = "-" if re.fullmatch(r"(\d+ ?[a-z]+ ?)+", since) else ""
    return [f"--since={age}{since}"] if since else []


def unknown_time(since: str, problem: str) -> str:
    """Return the message for a time that journalctl does not know."""
    return f"since={since}: {problem.strip()}. Write an age such as 10min, or a time in UTC."


def sources_of(app: App) -> dict[str, list[list[str]]]:
    """Return the alternatives of journalctl's matches that select each process's lines, by the process."""
    # The lines of an app `shop-api` are not those of a process `api` of the app `shop`.
    others = [name for name in installed(app.root) if name.startswith(f"{app.name}-")]
    units = (app.service, app.candidate, app.socket, app.http_socket)
    # Any app may write lines with any identifier or unit. journald itself adds the fields with an underscore.
    owners = {0, app.var.stat().st_uid} if app.var.exists() else {0}

    def called(identifier: str) -> list[list[str]]:
        return [[f"SYSLOG_IDENTIFIER={identifier}", f"_UID={owner}"] for owner in sorted(owners)]

    sources = {
        "web": [
            *called(app.name),
            *([f"_SYSTEMD_UNIT={unit}"] for unit in units),
            *([f"UNIT={unit}", "_PID=1"] for unit in units),  # what systemd says of the unit
        ],
        "deploy": [[*journal.OURS, f"BOOTY_APP={app.name}"]],
    }

    def processes(field: str, pattern: str) -> dict[str, str] | None:
        values = run_head(READ, *JOURNALCTL, f"--field={field}")
        names = {}
        for value in values.split("\n"):
            match = re.fullmatch(rf"{app.name}-({PROCESS}){pattern}", value)
            of_other = any(value == other or re.match(rf"{other}[-@.]", value) for other in others)
            if match and not of_other and not RESERVED.match(value):
                names[value] = match[1]
        return names if len(values) < READ and len(names) <= MOST else None

    # Any user of the host can write records with any values. If there are too many, only what is installed counts.
    on_disk = programs.on_disk(app)
    by_identifier, by_unit = processes("SYSLOG_IDENTIFIER", ""), processes("UNIT", r"(@.*)?\.(service|timer)")
    if by_identifier is None:
        names = {*COMMANDS, *(programs.name_of(app, unit) for unit in on_disk)}
        by_identifier = {f"{app.name}-{name}": name for name in names}
    if by_unit is None:
        loaded = Systemd(app).loaded(*(unit.replace("@.", "@*.") for unit in on_disk)) if on_disk else []
        by_unit = {unit: programs.name_of(app, unit) for unit in loaded}
    for identifier, process in sorted(by_identifier.items()):
        sources[process] = called(identifier)
    for unit, process in sorted(by_unit.items()):
        if process in sources:
            sources[process].append([f"UNIT={unit}", "_PID=1"])
    return sources


def follow(command: list[str], wait: float, limit: int) -> tuple[str, bool]:
    """Return the lines that a journalctl prints within `wait` seconds; the first line ends the wait.

    The wait ends as well when the connection of the call has ended, so that nothing stays on the host.

    Returns:
        the lines; and whether journalctl could go on, which a line that is too long prevents.
    """
    began, text, whole = time.monotonic(), b"", True
    with subprocess.Popen([*command, "--follow", "--lines=all"], stdout=subprocess.PIPE) as process:
        assert process.stdout
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        poll.register(1, 0)  # POLLHUP and POLLERR are reported always
        deadline = began + wait
        while (left := deadline - time.monotonic()) > 0 and len(text) < limit:
            events = dict(poll.poll(left * 1000))
            if 1 in events or not events:
                break
            if not (piece := process.stdout.read1(65536)):  # type: ignore[attr-defined]
                whole = False
                break
            if not text:
                # More lines may follow at once.
                deadline = time.monotonic() + 0.1
            text += piece
        process.kill()
    end = text.rfind(b"\n") + 1
    return text[:end].decode(), whole and (bool(end) or len(text) < limit)


def label(app: App, record: dict[str, Any]) -> str:
    """Return the process that a line is of."""
    identifier = record.get("SYSLOG_IDENTIFIER", "")
    if record.get("_PID") == "1" and record.get("UNIT"):
        return "systemd"
    if identifier == "booty-deploy" and record.get("_UID") == "0":
        return "deploy"
    if identifier == app.name:
        return "candidate" if record.get("_SYSTEMD_UNIT") == app.candidate else "web"
    # A program of the app can write any identifiers, also several. The names above are of no process.
    match = re.fullmatch(rf"{app.name}-({PROCESS})", str(identifier))
    return match[1] if match and match[1] not in {"candidate", "deploy", "systemd"} else "web"
