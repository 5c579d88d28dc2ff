"""Redaction: replaces secrets in texts that leave this process."""

import base64
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote, quote_plus, unquote

from booty_runner.settings import ACCEPTED
from booty_runner.shape import SECRET_NAME, is_place, is_plain

FILTERED = "[Filtered]"

# Shorter values are not treated as secrets: they occur in texts by chance too often.
MIN_LENGTH = 8
# The same for values that a variable's name, or their place in a URL, marks as secret.
MIN_LENGTH_OF_NAMED = 4
# In a URL without a password, a user of at least this length counts as a token; a shorter one is a name.
MIN_LENGTH_OF_USER = 16

# Values are nested up to this depth: JSON in JSON, a list in a list.
MAX_DEPTH = 8
# With more secrets than this, Redactor searches a text by the first letters of secrets.
MANY = 250

# Variables of the system, of systemd (systemd.exec(5)) and of Python. All others may hold secrets.
_HARMLESS_NAME = re.compile(
    "PATH|HOME|USER|LOGNAME|SHELL|PWD|OLDPWD|SHLVL|_|LANG|LANGUAGE|LC_.*|TZ|TERM|HOSTNAME|TMPDIR|PYTHON.*|VIRTUAL_ENV"
    "|INVOCATION_ID|JOURNAL_STREAM|SYSTEMD_EXEC_PID|NOTIFY_SOCKET|LISTEN_.*|MAINPID|WATCHDOG_.*|MEMORY_PRESSURE_.*"
    "|(RUNTIME|STATE|CACHE|LOGS|CONFIGURATION|CREDENTIALS)_DIRECTORY|BOOTY_(UNIT|SETTINGS|CONFIG_DIR|PROCESS)"
)
_SETTINGS = ACCEPTED.keys() - {"SENTRY_DSN"}
_NAMED_IN_VALUE = re.compile(r"""(?i)(?:pass\w{0,30}|pwd|secret|token|key)["']?\s{0,9}[=:]\s{0,9}["']?([^\s;&'"]+)""")
# A URL with a user, with a scheme or without. The password may contain unescaped characters such as / and @.
_CREDENTIALS = re.compile(r"(?s)(?:[\w+.-]*://)?([^\s:/@]*)(?::(?!//)(.*))?@[^@]*")
_USER_AND_PASSWORD = re.compile(r"([^\s:/@]+):([^\s/]\S*)")
_NAME_AND_VALUE = re.compile(r"(?s)-{0,2}([\w.-]{1,100})=(.+)")
_URLSAFE = str.maketrans("+/", "-_")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{24,}={0,2}")
# A word of prose, or of a key's first and last line.
_WORD = re.compile(r"\s*-{0,9}[^\W\d]*[-.,:!?]{0,9}")

# Secrets inside exception texts of libraries, as (substring to look for, pattern, replacement). The patterns have
# bounded repetitions, because a client may influence the text.
_IN_EXCEPTIONS: tuple[tuple[str, re.Pattern[str], str], ...] = (
    ("://", re.compile(r"(://[^\s/:@'\"]*:)[^\s/@'\"]+@"), rf"\1{FILTERED}@"),  # a URL's password
    ("?", re.compile(r"\?[\w.%~\[\]-]+=[^\s'\"{}<>()][^\s'\"<>()]*"), f"?{FILTERED}"),  # a URL's query
    # pydantic, which shortens the input by itself
    ("input_value=", re.compile(r"(?s)input_value=.{0,200}?, input_type="), f"input_value={FILTERED}, input_type="),
    # FastAPI
    ("'input': ", re.compile(r"(\{'type': .{0,99}?'loc': .{0,999}?'input': ).*"), rf"\1{FILTERED}"),
    # SQLAlchemy
    ("[parameters: ", re.compile(r"\[parameters: .*"), f"[parameters: {FILTERED}]"),
    # subprocess
    ("Command ", re.compile(r"Command '.{0,2000}' (?=returned|died|timed)"), f"Command {FILTERED} "),
)


def secrets_in(
    environment: Mapping[str, str], is_path: Callable[[str], bool] = lambda value: value.startswith("/")
) -> frozenset[str]:
    """Return the secrets of an environment, each in every form in which it may occur in a text.

    The service can't read which variables came from `secrets.env`. So each variable counts as a secret, except those of
    the system, Booty's own labels and switches, those that `BOOTY_SETTINGS` or `BOOTY_NOT_SECRET` names, short values,
    and values whose shape is plainly not a secret. Parts of a value count too: members of JSON, entries of a list,
    passwords.

    Args:
        environment: variables and their values.
        is_path: returns whether a value is a path, which is not a secret.
    """
    named = ",".join(environment.get(name, "") for name in ("BOOTY_SETTINGS", "BOOTY_NOT_SECRET"))
    plain = {name.strip() for name in named.split(",")} | _SETTINGS
    harmless = {name for name in environment if name in plain or _HARMLESS_NAME.fullmatch(name)}
    secrets: set[str] = set()
    for name, value in environment.items():
        if name not in harmless and not is_path(value):
            for part in _parts(name, value.strip()):
                secrets.update(_forms(part))
    return frozenset(secrets - {environment[name].strip() for name in harmless})


def _parts(name: str, value: str, whole: bool = True, depth: int = 0) -> Iterator[str]:
    """Yield the secrets in a value: the whole value if `whole` is true, and its secret parts."""
    named = bool(SECRET_NAME.search(name))
    if not named and is_plain(name, value):
        return
    if whole and len(value) >= (MIN_LENGTH_OF_NAMED if named else MIN_LENGTH):
        yield value
    if members := _members(name, value):
        for key, member in members:
            yield from _parts(key, member, depth=depth + 1)
        return
    if "\n" in value:  # a private key; logs may show it line by line
        yield from (line.strip() for line in value.splitlines() if len(line.strip()) >= MIN_LENGTH)
    inner = _NAMED_IN_VALUE.findall(value)
    inner += [part.rstrip(")}],") for part in inner]
    yield from (part for part in [*inner, *_credentials(name, named, value)] if len(part) >= MIN_LENGTH_OF_NAMED)
    for key, part in _pieces(name, named, value) if depth < MAX_DEPTH else ():
        yield from _parts(key, part, not _NAME_AND_VALUE.fullmatch(part), depth + 1)


def _pieces(name: str, named: bool, value: str) -> Iterator[tuple[str, str]]:
    r"""Yield (name, text) of the entries of a list, of `name=value`, and of a key written as base64 or with `\n`."""
    if "\\n" in value:
        yield name, value.replace("\\n", "\n")
    # A single word of prose is a secret only if it is long and the variable's name marks it as secret.
    prose, min_length = re.search(r"[^\s,;]\s+[^\s,;]", value), MIN_LENGTH if named else len(value)
    for separator in (r"[,;]", r"\s+"):
        if len(entries := re.split(separator, value)) > 1:
            for entry in entries:
                if len(entry) >= min_length or not (prose and _WORD.fullmatch(entry)):
                    yield name, entry.strip(" \t'\"")
            return
    if pair := _NAME_AND_VALUE.fullmatch(value):
        yield _more_telling(name, pair[1]), pair[2]
    if _BASE64.fullmatch(value):
        with suppress(ValueError):
            decoded = base64.urlsafe_b64decode(f"{value.translate(_URLSAFE).rstrip('=')}==").decode()
            if decoded.isprintable() or "\n" in decoded:
                yield name, decoded


def _more_telling(name: str, key: str) -> str:
    """Return the name by which to judge a value: its key inside the variable's value, or else the variable's name."""
    return key if SECRET_NAME.search(key) or is_place(key) else name


def _members(name: str, value: str) -> list[tuple[str, str]]:
    """Return the members of a JSON value at any depth, each with the name by which to judge it."""
    if value[:1] not in {"{", "["}:
        return []
    members: list[tuple[str, str]] = []

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(_more_telling(name, key), inner)
        elif isinstance(value, list):
            for inner in value:
                walk(name, inner)
        elif isinstance(value, str) or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            members.append((name, str(value).strip()))

    try:
        walk(name, json.loads(value, strict=False))
    except (ValueError, RecursionError):
        return []
    return members


def _credentials(name: str, named: bool, value: str) -> list[str]:
    """Return the password of a URL or of `user:password`, its form in HTTP Basic, or a user that is a token."""
    if match := _CREDENTIALS.fullmatch(value):
        user, password = match[1], match[2] or ""
        if "DSN" in name.upper():
            return [user, password]
        if not password:
            return [user] if len(user) >= MIN_LENGTH_OF_USER else []
    elif (match := _USER_AND_PASSWORD.fullmatch(value)) and (named or not is_plain("", match[2])):
        user, password = match.groups()
    else:
        return []
    pair = f"{unquote(user)}:{unquote(password)}"
    return [password, base64.b64encode(pair.encode(errors="surrogateescape")).decode().rstrip("=")]


def _forms(value: str) -> set[str]:
    """Return a value as it is, URL-encoded, URL-decoded, and escaped as in JSON and in Python's repr()."""
    escaped = (json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1])
    forms = {value, unquote(value), quote(value, safe=""), quote(value), quote_plus(value), *escaped}
    return {form for form in forms if len(form) >= MIN_LENGTH_OF_NAMED}


class Redactor:
    """Replaces secrets in texts."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # The longest first, because a secret may be part of another one.
        self._secrets = sorted({secret for secret in secrets if secret}, key=lambda s: (-len(s), s))
        self._by_start: dict[str, list[str]] = {}
        for secret in self._secrets:
            self._by_start.setdefault(secret[:MIN_LENGTH_OF_NAMED], []).append(secret)

    def known(self, text: str) -> str:
        """Return the text without the secrets of this redactor."""
        # `in` for each secret is many times faster than one regular expression of all secrets.
        secrets = self._secrets if len(self._secrets) <= MANY else self._candidates(text)
        for secret in secrets:
            if secret in text:
                text = text.replace(secret, FILTERED)
        return text

    def _candidates(self, text: str) -> list[str]:
        size = MIN_LENGTH_OF_NAMED
        starts = self._by_start.keys() & {text[at : at + size] for at in range(len(text) - size + 1)}
        return sorted((secret for start in starts for secret in self._by_start[start]), key=lambda s: (-len(s), s))

    def text(self, text: str) -> str:
        """Return the text without the secrets, and without secrets inside exception texts of libraries."""
        text = self.known(text)
        for substring, pattern, replacement in _IN_EXCEPTIONS:
            if substring in text:
                text = pattern.sub(replacement, text)
        return text

    def value(self, value: Any, keys: bool = True) -> Any:
        """Return a copy of a JSON value with redacted texts; keys are redacted too if `keys` is true."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(key) if keys else key: self.value(inner, keys) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(inner, keys) for inner in value]
        return value


def of_environment(*more: str) -> Redactor:
    """Return a redactor for the secrets of the environment, as it is now, and further ones."""
    extra = secrets_in({f"SECRET_DSN_{number}": text for number, text in enumerate(more)})
    return Redactor(secrets_in(os.environ, lambda value: value.startswith("/") and os.path.exists(value)) | extra)
