"""Check `app_settings`, the environment variables of an app that are no secret, and the files of `app_config_dir`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .archive import key

# Names that can't be settings, each with what sets them. docs/your-app.md lists them for users.
RESERVED = (
    ("SENTRY_RELEASE", "app_release sets it"),
    ("SENTRY_ENVIRONMENT", "app_environment sets it"),
    ("SENTRY_DSN", "it belongs in secrets.env"),
    ("PORT", "app_port sets it"),
    ("WEB_CONCURRENCY", "app_workers sets it"),
    ("HOME|PATH|PYTHONUNBUFFERED|STATE_DIRECTORY", "Booty sets it"),
    (
        r"BOOTY_(LOG_FORMAT|(DRAIN|STREAM|WATCHDOG)_SECONDS|WORKERS|THREADS|TELEMETRY_GATE|HEALTH_(PATH|HOST)"
        r"|TRUSTED_PROXIES)",
        "the variable of the inventory that begins with app_ sets it",
    ),
    (r"BOOTY_(RELEASE_DIR|CONFIG_DIR|SETTINGS|UNIT|CANDIDATE|PROCESS)", "Booty sets it"),
    # systemd.exec(5), "Environment variables in spawned processes"; sd_notify(3), sd_listen_fds(3).
    (
        r"NOTIFY_SOCKET|LISTEN_(PID|FDS|FDNAMES|PIDFDID)|WATCHDOG_(PID|USEC)|MAINPID|INVOCATION_ID|JOURNAL_STREAM"
        r"|SYSTEMD_EXEC_PID|MEMORY_PRESSURE_(WATCH|WRITE)|(RUNTIME|CACHE|LOGS|CONFIGURATION|CREDENTIALS)_DIRECTORY",
        "systemd sets it",
    ),
    # ld.so(8) and python(1).
    (
        r"PYTHON(PATH|HOME|USERBASE)|LD_(PRELOAD|LIBRARY_PATH|AUDIT)",
        "it makes the process load code from outside of the release",
    ),
)
# Words in the name of a secret, and words beside them in the name of a value that is none. A password in an address.
SECRET_WORDS = {*("PASS", "PASSWORD", "PASSWD", "PASSPHRASE", "SECRET", "TOKEN", "KEY", "APIKEY", "CREDENTIALS", "DSN")}
PUBLIC_WORDS = {"PUBLIC", "PUBLISHABLE", "SITE", "PREFIX", "NAME", "ID", "PATH", "FILE"}
PASSWORD_IN_ADDRESS = re.compile(r"://[^/@\s:]*:[^/@\s]+@")
# systemd passes a variable with a control character other than the tab to no process. Half a character of UTF-16 is no
# text.
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
CONFIG_BYTES = 1_000_000


def typed_settings(value: Any) -> dict[str, str]:
    """Return settings as texts, sorted by name.

    A whole number becomes its digits, a boolean `true` or `false`. A number with a fraction and a date are refused:
    YAML has lost their text (1.10 is 1.1).

    Raises:
        ValueError: a name or a value can't be one; the message completes the sentence "write …" and has no value.
    """
    if not isinstance(value, dict):
        raise ValueError('names with values, such as {"DEBUG": false}')
    for name, setting in value.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"a name of letters, digits and _, in quotes, in place of {str(name)[:40]!r}")
        if owner := next((owner for names, owner in RESERVED if re.fullmatch(names, name)), None):
            raise ValueError(f"no {name} there: {owner}")
        if not isinstance(setting, (str, int)):
            raise ValueError(f"a text of one line for {name}, in quotes")
        if len(f"{setting}.".splitlines()) > 1:
            raise ValueError(f"a text of one line for {name}; keep a longer one in a file of app_config_dir")
        if CONTROL.search(str(setting)):
            raise ValueError(f"a text without control characters for {name}")
        # The kernel starts no program with a longer variable (MAX_ARG_STRLEN).
        if len(f"{name}={setting}".encode()) >= 131_072:
            raise ValueError(f"a shorter text for {name}, of less than 128 KB; keep a longer one in app_config_dir")
    texts = {name: str(each).lower() if isinstance(each, bool) else str(each) for name, each in value.items()}
    return dict(sorted(texts.items()))


def suspects(settings: dict[str, str]) -> Iterator[str]:
    """Yield the names of settings that look like secrets, unless the setting BOOTY_NOT_SECRET names them."""
    harmless = {"BOOTY_NOT_SECRET", *map(str.strip, settings.get("BOOTY_NOT_SECRET", "").split(","))}
    for name in sorted({*settings} - harmless):
        words = {*name.upper().split("_")}
        if (words & SECRET_WORDS and not words & PUBLIC_WORDS) or PASSWORD_IN_ADDRESS.search(settings[name]):
            yield name


def config_files(folder: str) -> dict[str, bytes]:
    """Return the content of each file of app_config_dir, by its path in the folder; none for "".

    Raises:
        ValueError: it is no such folder; the message completes the sentence "write …".
    """
    if not folder:
        return {}
    if not Path(folder).is_dir():
        raise ValueError("a folder on this machine")
    contents: dict[str, bytes] = {}
    for directory, subdirectories, names in os.walk(folder):
        if links := [name for name in subdirectories if Path(directory, name).is_symlink()]:
            raise ValueError(f"a folder without links to other folders, such as {links[0]}")
        subdirectories[:] = [name for name in subdirectories if name != "__pycache__"]
        for path in (Path(directory, name) for name in names):
            if not path.is_file():
                raise ValueError(f"a folder of files: {path.name} is none")
            contents[str(path.relative_to(folder))] = path.read_bytes()
            if sum(map(len, contents.values())) > CONFIG_BYTES:
                raise ValueError(f"a folder with files of at most {CONFIG_BYTES // 1_000_000} MB together")
    if not contents:
        raise ValueError("a folder with files in it")
    return dict(sorted(contents.items()))


def config_place(app: str, contents: dict[str, bytes]) -> str:
    """Return the folder of these files on a host, which has their hash for a name; "" without files."""
    parts = (part for name, content in contents.items() for part in (name, str(len(content)), content))
    return f"/opt/{app}/config/{key(*parts)}" if contents else ""
