"""Leave records in the host's journal, under the identifier booty-deploy."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

from booty_host.app import App

# journalctl's matches for the records of the host program: an app may write records with any identifier of its own.
OURS = ("SYSLOG_IDENTIFIER=booty-deploy", "_UID=0")
# The fields of a record that its readers share, by their names in an answer.
FIELDS = {name: f"BOOTY_{name.upper()}" for name in ("result", "release", "from", "by", "seconds", "watch")}


def log(app: App, message: str, **fields: str) -> None:
    """Leave a record in the journal, with each of `fields` as a field of its own: BOOTY_RESULT=…, and BOOTY_APP=NAME.

    The form is the journal's own, which keeps a message of many lines whole: JOURNAL_NATIVE_PROTOCOL in systemd's docs.
    """
    named = {f"BOOTY_{name.upper()}": value for name, value in {"app": app.name, **fields}.items()}
    record = {"SYSLOG_IDENTIFIER": "booty-deploy", "PRIORITY": "6", "MESSAGE": message, **named}
    data = b"".join(
        name.encode() + b"\n" + len(text := value.encode()).to_bytes(8, "little") + text + b"\n"
        for name, value in record.items()
    )
    # The journal may be restarting; a cutover must not stop half-way for that.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.sendto(data, str(app.root / "run/systemd/journal/socket"))


def lines_of(output: str) -> list[str]:
    """Return the lines of what journalctl printed; JSON may hold characters that Python takes for the end of a line."""
    return [line for line in output.split("\n") if line]


def text_of(field: Any) -> str:
    """Return a field as text: journalctl writes one that is not printable as a list of bytes.

    It writes the values of a record that has the field twice as a list as well.
    """
    if isinstance(field, list) and not all(isinstance(byte, int) for byte in field):
        return "\n".join(map(text_of, field))
    if isinstance(field, list):
        return bytes(field).decode(errors="replace")
    return str(field or "")


def texts(entry: dict[str, Any], fields: dict[str, str]) -> dict[str, str]:
    """Return the fields that an entry of the journal has, by their names in an answer.

    Args:
        entry: as `journalctl --output=json` prints it.
        fields: the journal's fields, by these names.
    """
    # A message may quote an app; other fields are always text.
    known = {name: entry[field] for name, field in fields.items() if field in entry}
    return {name: text_of(value) for name, value in known.items() if isinstance(value, str) or name == "message"}


def seconds_of(entry: dict[str, Any]) -> float:
    """Return the time of an entry of the journal, in seconds since 1970."""
    return int(entry["__REALTIME_TIMESTAMP"]) / 1_000_000


def record(app: App, message: str, fields: dict[str, str], check: bool) -> dict[str, Any]:
    """Leave a record of the controller's decision, unless this is a check."""
    if not check:
        log(app, message, **fields)
    return {"changed": False}
