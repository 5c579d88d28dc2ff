"""Redaction: what must not leave this process is replaced wherever it turns up in a text."""

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

# A shorter value says too little to be kept secret, and too often turns up by chance.
MIN_LENGTH = 8
# Of a value that its variable's name, or its place in a URL, gives away as a secret.
MIN_LENGTH_OF_NAMED = 4
# A URL's user without a password is a name, or a token if it is this long.
MIN_LENGTH_OF_USER = 16

# A value may hold others: JSON in JSON, a list in a list.
MAX_DEPTH = 8
# With more secrets than that, texts are searched by the secrets' first letters.
MANY = 250

# Of the system, of systemd (systemd.exec(5)) and of Python; what is not listed here is a secret.
_HARMLESS_NAME = re.compile(
    "PATH|HOME|USER|LOGNAME|SHELL|PWD|OLDPWD|SHLVL|_|LANG|LANGUAGE|LC_.*|TZ|TERM|HOSTNAME|TMPDIR|PYTHON.*|VIRTUAL_ENV"
    "|INVOCATION_ID|JOURNAL_STREAM|SYSTEMD_EXEC_PID|NOTIFY_SOCKET|LISTEN_.*|MAINPID|WATCHDOG_.*|MEMORY_PRESSURE_.*"
    "|(RUNTIME|STATE|CACHE|LOGS|CONFIGURATION|CREDENTIALS)_DIRECTORY|BOOTY_UNIT"
)
_SETTINGS = ACCEPTED.keys() - {"SENTRY_DSN"}
_NAMED_IN_VALUE = re.compile(r"""(?i)(?:pass\w{0,30}|pwd|secret|token|key)["']?\s{0,9}[=:]\s{0,9}["']?([^\s;&'"]+)""")
# With a scheme or without; a password may have unescaped signs of a URL in it.
_CREDENTIALS = re.compile(r"(?s)(?:[\w+.-]*://)?([^\s:/@]*)(?::(?!//)(.*))?@[^@]*")
_USER_AND_PASSWORD = re.compile(r"([^\s:/@]+):([^\s/]\S*)")
_NAME_AND_VALUE = re.compile(r"(?s)-{0,2}([\w.-]{1,100})=(.+)")
_URLSAFE = str.maketrans("+/", "-_")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{24,}={0,2}")
# Of prose, or of the first and last line of a key.
_WORD = re.compile(r"\s*-{0,9}[^\W\d]*[-.,:!?]{0,9}")

# What libraries put into the text of an exception, beside the value of any variable: part of the text that tells
# such a place, its pattern, and what to put there. Bounded, since a client may have a say in the text.
_PLACES: tuple[tuple[str, re.Pattern[str], str], ...] = (
    ("://", re.compile(r"(://[^\s/:@'\"]*:)[^\s/@'\"]+@"), rf"\1{FILTERED}@"),  # a URL's password
    ("?", re.compile(r"\?[\w.%~\[\]-]+=[^\s'\"{}<>()][^\s'\"<>()]*"), f"?{FILTERED}"),  # a URL's query
    # pydantic, which itself shortens the input
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
    """Take from an environment the texts that must not leave, in each form in which they turn up.

    The service can't read which variables came from `secrets.env`, so each counts as a secret but for the system's,
    Booty's own labels and switches, those that `BOOTY_NOT_SECRET` names, values that are plainly none by their shape,
    and short ones. So do the parts of a value: members of JSON, entries of a list, passwords.

    Args:
        environment: variables and their values.
        is_path: tells whether a value is a path, which is no secret.
    """
    plain = {name.strip() for name in environment.get("BOOTY_NOT_SECRET", "").split(",")} | _SETTINGS
    harmless = {name for name in environment if name in plain or _HARMLESS_NAME.fullmatch(name)}
    found: set[str] = set()
    for name, value in environment.items():
        if name not in harmless and not is_path(value):
            for part in _parts(name, value.strip()):
                found.update(_forms(part))
    return frozenset(found - {environment[name].strip() for name in harmless})


def _parts(name: str, value: str, whole: bool = True, depth: int = 0) -> Iterator[str]:
    """Give what is secret of a value: the whole, unless that is not asked for, and the parts that it is made of."""
    named = bool(SECRET_NAME.search(name))
    if not named and is_plain(name, value):
        return
    if whole and len(value) >= (MIN_LENGTH_OF_NAMED if named else MIN_LENGTH):
        yield value
    if members := _members(name, value):
        for key, member in members:
            yield from _parts(key, member, depth=depth + 1)
        return
    if "\n" in value:  # a private key, which is also shown line by line
        yield from (line.strip() for line in value.splitlines() if len(line.strip()) >= MIN_LENGTH)
    inside = _NAMED_IN_VALUE.findall(value)
    inside += [part.rstrip(")}],") for part in inside]
    yield from (part for part in [*inside, *_credentials(name, named, value)] if len(part) >= MIN_LENGTH_OF_NAMED)
    for key, part in _pieces(name, named, value) if depth < MAX_DEPTH else ():
        yield from _parts(key, part, not _NAME_AND_VALUE.fullmatch(part), depth + 1)


def _pieces(name: str, named: bool, value: str) -> Iterator[tuple[str, str]]:
    """Give the entries of a list, the value of `name=value`, and a key that is written in one line or as base64."""
    if "\\n" in value:
        yield name, value.replace("\\n", "\n")
    # A word among several is a secret only if it is a long one, and its name says so.
    blanks, least = re.search(r"[^\s,;]\s+[^\s,;]", value), MIN_LENGTH if named else len(value)
    for separator in (r"[,;]", r"\s+"):
        if len(entries := re.split(separator, value)) > 1:
            for entry in entries:
                if len(entry) >= least or not (blanks and _WORD.fullmatch(entry)):
                    yield name, entry.strip(" \t'\"")
            return
    if pair := _NAME_AND_VALUE.fullmatch(value):
        yield _nearer(name, pair[1]), pair[2]
    if _BASE64.fullmatch(value):
        with suppress(ValueError):
            decoded = base64.urlsafe_b64decode(f"{value.translate(_URLSAFE).rstrip('=')}==").decode()
            if decoded.isprintable() or "\n" in decoded:
                yield name, decoded


def _nearer(name: str, key: str) -> str:
    """Choose what says more of a value: the key that it has within a variable's value, or the variable's name."""
    return key if SECRET_NAME.search(key) or is_place(key) else name


def _members(name: str, value: str) -> list[tuple[str, str]]:
    """Give the members of a JSON value, at any depth, each with the name that says most of it."""
    if value[:1] not in {"{", "["}:
        return []
    found: list[tuple[str, str]] = []

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(_nearer(name, key), inner)
        elif isinstance(value, list):
            for inner in value:
                walk(name, inner)
        elif isinstance(value, str) or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            found.append((name, str(value).strip()))

    try:
        walk(name, json.loads(value, strict=False))
    except (ValueError, RecursionError):
        return []
    return found


def _credentials(name: str, named: bool, value: str) -> list[str]:
    """Give the password of a URL or of `user:password`, the pair as HTTP Basic sends it, and a user that is a token."""
    if found := _CREDENTIALS.fullmatch(value):
        user, password = found[1], found[2] or ""
        if "DSN" in name.upper():
            return [user, password]
        if not password:
            return [user] if len(user) >= MIN_LENGTH_OF_USER else []
    elif (found := _USER_AND_PASSWORD.fullmatch(value)) and (named or not is_plain("", found[2])):
        user, password = found.groups()
    else:
        return []
    pair = f"{unquote(user)}:{unquote(password)}"
    return [password, base64.b64encode(pair.encode(errors="surrogateescape")).decode().rstrip("=")]


def _forms(value: str) -> set[str]:
    """Give a value as it is, as a URL holds it or decoded from one, and as JSON and Python show it."""
    shown = (json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1])
    forms = {value, unquote(value), quote(value, safe=""), quote(value), quote_plus(value), *shown}
    return {form for form in forms if len(form) >= MIN_LENGTH_OF_NAMED}


class Redactor:
    """Replaces secrets in texts."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # The longest first: a secret may be part of another.
        self._secrets = sorted({secret for secret in secrets if secret}, key=lambda s: (-len(s), s))
        self._by_start: dict[str, list[str]] = {}
        for secret in self._secrets:
            self._by_start.setdefault(secret[:MIN_LENGTH_OF_NAMED], []).append(secret)

    def known(self, text: str) -> str:
        """Return the text without the secrets."""
        # Looking for each is many times faster than a pattern of all, and nearly always finds none.
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
        """Return the text without the secrets, and without what libraries put into their messages."""
        text = self.known(text)
        for sign, pattern, replacement in _PLACES:
            if sign in text:
                text = pattern.sub(replacement, text)
        return text

    def value(self, value: Any, keys: bool = True) -> Any:
        """Return a copy of what JSON can hold, with each text in it redacted, and if asked the keys as well."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(key) if keys else key: self.value(inner, keys) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(inner, keys) for inner in value]
        return value


def of_environment(*more: str) -> Redactor:
    """Make the redactor of this process's environment and further secrets, as of now."""
    extra = secrets_in({f"SECRET_DSN_{number}": text for number, text in enumerate(more)})
    return Redactor(secrets_in(os.environ, lambda value: value.startswith("/") and os.path.exists(value)) | extra)
