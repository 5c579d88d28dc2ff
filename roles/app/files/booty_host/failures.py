"""Read what a failed start left in the journal: the app's own traceback, and the next step if the cause is common."""

from __future__ import annotations

import re

# How many lines of the journal a message shows, and how many at most if a traceback is longer.
SHOWN, SHOWN_AT_MOST = 20, 60
# How many characters of a line are shown and searched: an app may write lines of any length.
WIDTH = 2000
TRACEBACK = "Traceback (most recent call last):"
# A traceback, or one of a group of exceptions, in one line that is no JSON.
FOLDED = re.compile(rf"(?!{{).* \| (  \+ Exception Group )?{re.escape(TRACEBACK)}")
SETTING = "The app needs the setting {}: add it to app_settings, or to secrets.env on the host if it is a secret."
# Libraries say in these words what is missing, which is no field of the app's own data.
MISSING_FIELDS = re.compile(r"^(\w+)\n +[Ff]ield required", re.MULTILINE)
# Each cause as the text of an exception, with the next step; groups fill the step's brackets. The first one that is
# found counts.
CAUSES = (
    # os.environ, then django-environ, environs, python-decouple, Starlette's Config and Django.
    (r"<frozen os>.*\n(?:.*\n)?KeyError: '(\w+)'", SETTING),
    (r"ImproperlyConfigured: Set the (\w+) environment variable", SETTING),
    (r'Error: Environment variable "(\w+)" not set', SETTING),
    (r"UndefinedValueError: (\w+) not found\.", SETTING),
    (r"KeyError: \"Config '(\w+)' is missing", SETTING),
    (r"ImproperlyConfigured: The (SECRET_KEY) setting must not be empty", SETTING),
    (
        r"No module named '(\w+)",
        "The release has no module {}: add its package to the app's dependencies, lock again and commit; if it is the"
        " app's own, app_path names another folder than the one it is imported from.",
    ),
    (
        r"subprocess\.py\", line \d+, in _execute_child\n(?:.*\n)*?FileNotFoundError: .*: '([^/']+)'",
        "The app runs the program {}, which the host lacks: name the Debian package that has it in app_packages, then:"
        " ansible-playbook bootstrap.yml",
    ),
    (
        r"Read-only file system: '/opt/[^/']+/releases/[^/']+/tree/([^']+)'",
        "The app writes {} in its own folder, which is read-only: name it, or the folder it is in, in app_state_paths.",
    ),
    (
        r"Read-only file system: '/opt/[^/']+/releases/[^/']+/(?:venv/)?var['/]",
        "Flask or Quart takes the app for an installed package: give it a folder in its HOME, /var/lib/NAME:"
        " Flask(__name__, instance_path=os.path.expanduser('~/instance'))",
    ),
    (
        r"Read-only file system: '([^']+)'",
        "The app writes {}, and may write only in /var/lib/NAME (its HOME): set another path in app_settings, or name a"
        " path of its own folder in app_state_paths.",
    ),
    (
        r"sqlite3\.OperationalError: (?:attempt to write a readonly database|unable to open database file)",
        "The app's SQLite file is where the app can't write: name it in app_state_paths, or set a path in its HOME,"
        " /var/lib/NAME.",
    ),
    (
        r"password authentication failed for user|Access denied for user|no pg_hba\.conf entry for|WRONGPASS|NOAUTH",
        "The database refuses the login: see its user and password in secrets.env on the host.",
    ),
    (
        r"(?:Error|Exception)\b(?!.*urllib3).*(?:[Cc]onnection refused|Connect call failed)",
        "Nothing listens where the app looks for its database or another server: start that, or mend the address in"
        " app_settings or secrets.env.",
    ),
    (
        r"(?:Error|Exception)\b(?!.*urllib3).*(?:Name or service not known|Temporary failure in name resolution)",
        "The host does not find a name that the app connects to: mend the address in app_settings or secrets.env.",
    ),
    (
        r"You may need to add '([^']+)' to ALLOWED_HOSTS",
        "The app does not accept the Host header {}: set app_health_host to a name in its ALLOWED_HOSTS.",
    ),
    (
        r"write\+execute memory|Unable to allocate section memory|executable memory",
        "The app makes code at run time, which its sandbox forbids: app_sandbox_allow: [jit]",
    ),
)


def unfolded(entry: str) -> list[str]:
    """Return the lines of an entry of the journal.

    The runner writes a traceback in one line, with ` | ` between its lines. The margin of a group of exceptions has
    ` | ` as well, which leaves parts of blanks.
    """
    if not FOLDED.match(entry):
        return [entry]
    return [line for line in entry.split(" | ") if not line or not line.isspace()]


def excerpt(journal: str) -> list[str]:
    """Return the last lines of a journal, back to the beginning of the last traceback."""
    lines = [line[:WIDTH] for entry in journal.splitlines() for line in unfolded(entry)]
    begins = [number for number, line in enumerate(lines) if line.endswith(TRACEBACK)]
    first = min(len(lines) - SHOWN, begins[-1]) if begins else len(lines) - SHOWN
    return lines[max(first, len(lines) - SHOWN_AT_MOST, 0) :]


def next_step(lines: list[str]) -> str:
    """Return one sentence on a common cause of a failure; "" if none is found in these lines."""
    text = "\n".join(line[:WIDTH] for line in lines)
    if "ValidationError" in text and (names := [*dict.fromkeys(MISSING_FIELDS.findall(text))]):
        return SETTING.format(", ".join(name.upper() for name in names))
    for pattern, step in CAUSES:
        if match := re.search(pattern, text):
            return step.format(*match.groups())
    return ""
