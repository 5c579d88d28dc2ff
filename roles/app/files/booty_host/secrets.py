"""Judge an app's secrets.env, without showing a value of it."""

from __future__ import annotations

import re
import stat
import urllib.parse
from contextlib import suppress
from typing import Any

from booty_host.app import App
from booty_host.files import parse_assignments, read
from booty_host.processes import LABELS

# Keys and hosts of documentation and templates: RFC 2606's names, and those of Sentry's own examples.
PLACEHOLDER = re.compile(
    r"[<>{}]|change.?me|replace.?me|placeholder|\byour[-_.]|xxxx|\btodo\b|//(public|key|(example)?public_?key)[:@]"
    r"|[@.]example\.(com|org|net)[:/]|\.(example|invalid)[:/]|@o0\.ingest\.",
    re.IGNORECASE,
)
# Faults of the whole text, and then of a line, each as (pattern, message). systemd reads the file
# (`parse_env_file_internal` in its src/basic/env-file.c). A fault is text that systemd would misread or skip silently,
# or that another reader of such files would read in another way.
FAULTS_OF_TEXT = (
    (r"\ufeff", "it begins with a byte order mark (BOM): save it as UTF-8 without one"),
    (r"[^\r]*\r", "it has Windows line ends (CRLF): remove them with sed -i 's/\\r$//'"),
    (r"[^\0]*\0", "it holds a NUL byte: it is no text"),
)
FAULTS_OF_COMMENT = ((r".*\\\Z", "is a comment that ends with a backslash, for which systemd may skip the next line"),)
FAULTS_OF_LINE = (
    (r"export ", "begins with export, which systemd does not know: remove the word"),
    (r"[^=]*(\s=|=\s)", "has blanks around its =: remove them"),
    (r"(?![A-Za-z_][A-Za-z0-9_]*=)", "is not NAME=value, so systemd would pass over it"),
    (r"\w+=(?!['\"]).*['\"]\Z", "has an unbalanced quote"),
    (r"\w+=(?!['\"]).*\\", "has a backslash, which systemd would take away: put the value in single quotes"),
    (
        r"\w+=(?!['\"]).*\s[#;]",
        "has a comment after its value, which systemd would make part of the value: move it to a line of its own; if it"
        " is part of the value, put the value in single quotes",
    ),
)
# Shorter values occur in texts by chance.
SECRET_LENGTH = 8
FILTERED = "[Filtered]"
# Variables that secrets.env must not set, and what sets them instead. An EnvironmentFile= would override Environment=
# and the variables that systemd sets.
RESERVED = (
    (
        r"BOOTY_(LOG_FORMAT|(DRAIN|STREAM|WATCHDOG)_SECONDS|WORKERS|THREADS|TELEMETRY_GATE|HEALTH_(PATH|HOST)"
        r"|TRUSTED_PROXIES)",
        "the unit sets: remove it, and set {} in the inventory",
    ),
    (r"PORT", "the unit sets: remove it, and set app_port in the inventory"),
    (r"WEB_CONCURRENCY", "the unit sets: remove it, and set app_workers in the inventory"),
    (r"BOOTY_(CONFIG_DIR|SETTINGS)", "release.env sets: remove it"),
    (r"BOOTY_(UNIT|CANDIDATE|PROCESS)|HOME|PATH|PYTHONUNBUFFERED", "the unit sets: remove it"),
    (
        # systemd.exec(5), "Environment variables in spawned processes"; sd_notify(3), sd_listen_fds(3).
        r"NOTIFY_SOCKET|LISTEN_(PID|FDS|FDNAMES|PIDFDID)|WATCHDOG_(PID|USEC)|MAINPID|INVOCATION_ID|JOURNAL_STREAM"
        r"|SYSTEMD_EXEC_PID|MEMORY_PRESSURE_(WATCH|WRITE)"
        r"|(RUNTIME|STATE|CACHE|LOGS|CONFIGURATION|CREDENTIALS)_DIRECTORY",
        "systemd sets: remove it",
    ),
    # ld.so(8) and python(1): code from outside of the release would run under the release's label.
    (
        r"PYTHON(PATH|HOME|USERBASE)|LD_(PRELOAD|LIBRARY_PATH|AUDIT)",
        "makes the process load code from outside of the release: remove it",
    ),
)
# Text that is pasted into a terminal may bring control characters, and systemd keeps them.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Linux's limits in bytes (execve(2)). One NAME=value: MAX_ARG_STRLEN without the zero byte at its end. All of them with
# their pointers: a quarter of the stack's 8 MB, less the size of systemd's own variables and of the command.
MAX_VARIABLE, MAX_VARIABLES = 131_071, 2 * 2**20 - 2**15
TO_FILE = "keep it in a file of its own, readable for the service, and set the path here"
# A quoted value may span several lines, as a private key does. In double quotes a backslash escapes the next character.
QUOTED = {"'": re.compile(r"'([^']*)'"), '"': re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)}
# An assignment inside of a quoted value: its closing quote was forgotten.
SWALLOWED = re.compile(r"\n[A-Z][A-Z0-9]*_[A-Z0-9_]*=")


def judge_dsn(dsn: str) -> str | None:
    """Return the fault of a Sentry DSN, without showing the DSN; None if it has none.

    The form is Sentry's own: `{scheme}://{public key}@{host}{path}/{project id}`.
    """
    try:
        parts = urllib.parse.urlsplit(dsn)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return "SENTRY_DSN is not a URL"
    project = parts.path.rpartition("/")[2]
    checks = (
        (PLACEHOLDER.search(dsn), "is a placeholder; the tracker shows the real one, among the project's client keys"),
        (parts.scheme not in {"http", "https"}, "does not begin with http:// or https://"),
        (not parts.username, "has no public key"),
        (not host or any(character.isspace() for character in dsn), "has no usable host"),
        (":" in host, "has an IPv6 address for a host, which Sentry's SDK does not support"),
        (not project, "has no project id"),
        (not (project.isascii() and project.isdecimal()), "has a project id that is not a number"),
    )
    return next((f"SENTRY_DSN {fault}" for fails, fault in checks if fails), None)


def parse(text: str) -> dict[str, tuple[int, str]]:
    """Read the text of `secrets.env` as systemd does.

    Returns:
        the line's number and the value of each variable; a quoted value is the text between the quotes.

    Raises:
        ValueError: a line would not reach the service as it is written; the message names the line and shows no value.
    """
    if fault := next((fault for pattern, fault in FAULTS_OF_TEXT if re.match(pattern, text)), None):
        raise ValueError(fault)
    values: dict[str, tuple[int, str]] = {}
    lines = text.split("\n")
    number = size = 0
    while number < len(lines):
        line, rest, number = lines[number].strip(" \t"), "\n".join(lines[number:]), number + 1
        comment = not line or line.startswith(("#", ";"))
        if fault := next(
            (fault for pattern, fault in (FAULTS_OF_COMMENT if comment else FAULTS_OF_LINE) if re.match(pattern, line)),
            None,
        ):
            raise ValueError(f"line {number} {fault}")
        if comment:
            continue
        name, _, value = line.partition("=")
        after = number
        if value[:1] in QUOTED:
            quoted = QUOTED[value[0]].match(rest, rest.index("=") + 1)
            if not quoted or SWALLOWED.search(quoted[1]):
                raise ValueError(f"line {number} has an unbalanced quote")
            if rest[quoted.end() :].partition("\n")[0].strip():
                raise ValueError(f"line {number} goes on after its closing quote: systemd knows no comments there")
            value, after = quoted[1].strip(), number + quoted[1].count("\n")
        if owner := next((owner for names, owner in RESERVED if re.fullmatch(names, name)), None):
            raise ValueError(f"line {number} sets {name}, which {owner.format(name.lower().replace('booty_', 'app_'))}")
        if CONTROL.search(value):
            raise ValueError(f"line {number} holds a control character, as pasting may leave it: type the line anew")
        if name in values:
            raise ValueError(f"lines {values[name][0]} and {number} set the same name: remove one")
        if (length := len(f"{name}={value}".encode())) > MAX_VARIABLE:
            raise ValueError(f"line {number} has {length:,} bytes, and Linux takes {MAX_VARIABLE:,} at most: {TO_FILE}")
        values[name] = (number, value)
        number, size = after, size + length + 9
    if size > MAX_VARIABLES:
        raise ValueError(f"its values have {size:,} bytes, and Linux takes {MAX_VARIABLES:,} at most: {TO_FILE}")
    return values


def judge_content(data: bytes) -> tuple[str | None, str | None]:
    """Judge the content of `secrets.env`, without showing any of it.

    Returns:
        the fault that keeps systemd from reading it as it is written; and that fault, or else the one that keeps
        production from using it. None stands for no fault.
    """
    try:
        values = parse(data.decode())
    except UnicodeDecodeError:
        return ("it is not UTF-8 text",) * 2
    except ValueError as error:
        return (str(error),) * 2
    # systemd reads release.env after secrets.env, so a label in secrets.env would have no effect.
    if labels := [(number, name) for name, (number, _) in values.items() if name in LABELS]:
        return None, "line {} sets {}, which is release.env's to say: remove it".format(*labels[0])
    dsn = values.get("SENTRY_DSN", (0, ""))[1]
    return None, judge_dsn(dsn) if dsn else "SENTRY_DSN is not set" if data.strip() else "it is empty"


def names_in(data: bytes) -> list[str]:
    """Return the names that `secrets.env` sets; none if systemd can't read it as it is written."""
    try:
        return sorted(parse(data.decode()))
    except ValueError:
        return []


def judge(app: App) -> dict[str, Any]:
    """Judge `/etc/NAME/secrets.env` on the host, without returning a value of it.

    Returns:
        the `names` that it sets; three faults, each None if there is none: `closed`, of the owner or mode; `readable`,
        which keeps systemd from reading the file as it is written; and `usable`, which keeps production from using it;
        and the `remedy` of the last one: to `write` the file, to `add` a line, or to `mend` one.
    """
    path = app.secrets_env
    try:
        status = path.lstat()
    except FileNotFoundError:
        missing = f"{path} is missing"
        return {"names": [], "closed": None, "readable": None, "usable": missing, "remedy": "write"}
    closed = None
    if stat.S_ISLNK(status.st_mode):
        closed = f"{path} is a symbolic link, which is not a regular file: put the file itself there"
    elif not stat.S_ISREG(status.st_mode):
        closed = f"{path} is not a regular file"
    elif status.st_uid != 0:
        closed = f"{path} is not owned by root"
    elif status.st_mode & 0o077:
        closed = f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):04o}; make it 0600)"
    if closed:
        return {"names": [], "closed": closed, "readable": None, "usable": closed, "remedy": "mend"}
    # Reading bytes keeps the line ends, which reading text would translate.
    data = path.read_bytes()
    readable, usable = (fault and f"{path}: {fault}" for fault in judge_content(data))
    names = names_in(data)
    remedy = "mend" if readable or "SENTRY_DSN" in names else "add"
    return {"names": names, "closed": None, "readable": readable, "usable": usable, "remedy": remedy}


def hidden(app: App) -> list[str]:
    """Return the values of secrets.env that no output may show, with the passwords in its URLs; the longest first."""
    text = read(app.secrets_env)
    try:
        values = [value for _, value in parse(text).values()]
    except ValueError:
        values = [value.strip("'\"") for value in parse_assignments(text).values()]
    lines = {line for value in values for line in value.splitlines()}
    for value in values:
        with suppress(ValueError):
            lines.add(urllib.parse.urlsplit(value).password or "")
    return sorted((value for value in lines if len(value) >= SECRET_LENGTH), key=len, reverse=True)


def filtered(text: str, values: list[str]) -> str:
    """Return a text without the values that no output may show."""
    for value in values:
        text = text.replace(value, FILTERED)
    return text
