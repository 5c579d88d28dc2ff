"""Redaction: what must not leave this process is replaced wherever it turns up in a text."""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, get_args
from urllib.parse import quote, quote_plus, unquote, urlsplit

from pydantic import SecretStr

from booty.config import Settings

FILTERED = "[Filtered]"

# A shorter value says too little to be kept secret, and too often turns up by chance.
MIN_LENGTH = 8
# Of a value that its variable's name, or its place in a URL, gives away as a secret.
MIN_LENGTH_OF_NAMED = 4
# A URL's user without a password is a name, or a token if it is this long.
MIN_LENGTH_OF_USER = 16

_SECRET_NAME = re.compile("PASS|PWD|SECRET|TOKEN|KEY|CREDENTIAL|DSN")
# Of the system, of systemd (systemd.exec(5)) and of Python; what is not listed here is a secret.
_HARMLESS_NAME = re.compile(
    "PATH|HOME|USER|LOGNAME|SHELL|PWD|OLDPWD|SHLVL|_|LANG|LANGUAGE|LC_.*|TZ|TERM|HOSTNAME|TMPDIR|PYTHON.*|VIRTUAL_ENV"
    "|INVOCATION_ID|JOURNAL_STREAM|SYSTEMD_EXEC_PID|NOTIFY_SOCKET|LISTEN_.*|MAINPID|WATCHDOG_.*|MEMORY_PRESSURE_.*"
    "|(RUNTIME|STATE|CACHE|LOGS|CONFIGURATION|CREDENTIALS)_DIRECTORY|BOOTY_UNIT"
)
_SETTINGS = {
    name.upper()
    for name, field in Settings.model_fields.items()
    if SecretStr not in (field.annotation, *get_args(field.annotation))
}
_NAMED_IN_VALUE = re.compile(r"(?i)(?:pass\w*|pwd|\w*secret|\w*token|\w*key)=([^\s;&'\"]+)")

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
    Booty's own labels and switches, those that `BOOTY_NOT_SECRET` names, values that are a path, and short ones.

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


def _parts(name: str, value: str) -> Iterator[str]:
    named = bool(_SECRET_NAME.search(name.upper()))
    if len(value) >= (MIN_LENGTH_OF_NAMED if named else MIN_LENGTH):
        yield value
    if "\n" in value:  # a private key, which is also shown line by line
        yield from (line.strip() for line in value.splitlines() if len(line.strip()) >= MIN_LENGTH)
    inside = _NAMED_IN_VALUE.findall(value)
    try:
        user, _, password = urlsplit(value).netloc.rpartition("@")[0].partition(":")
    except ValueError:
        user = password = ""
    if password or len(user) >= MIN_LENGTH_OF_USER or "DSN" in name.upper():
        inside += [password] if password and "DSN" not in name.upper() else [user, password]
    yield from (part for part in inside if len(part) >= MIN_LENGTH_OF_NAMED)


def _forms(value: str) -> set[str]:
    """Give a value as it is, as a URL holds it or decoded from one, and as JSON and Python show it."""
    shown = (json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1])
    return {value, unquote(value), quote(value, safe=""), quote(value), quote_plus(value), *shown}


class Redactor:
    """Replaces secrets in texts."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # The longest first: a secret may be part of another.
        self._secrets = sorted({secret for secret in secrets if secret}, key=lambda s: (-len(s), s))
        self._pattern = re.compile("|".join(map(re.escape, self._secrets)))

    def known(self, text: str) -> str:
        """Return the text without the secrets."""
        # Looking for each is many times faster than the pattern, and nearly always finds none.
        return self._pattern.sub(FILTERED, text) if any(secret in text for secret in self._secrets) else text

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
