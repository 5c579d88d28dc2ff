"""The runner's settings: read once from the environment, checked, and frozen."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from os import environ
from pathlib import Path
from typing import Any, Literal


class Refusal(Exception):
    """The service refuses to start until somebody changes something; the message says why, in one line."""


class _Flaw(ValueError):
    """What is wrong with a value, in words that hold nothing of it."""


def _setting(accepted: str, parse: Callable[[str], Any] = str, default: Any = None, **options: Any) -> Any:
    return field(default=default, metadata={"accepted": accepted, "parse": parse}, **options)


def _dsn(text: str) -> str:
    # urlsplit drops tabs and newlines in silence, so this comes first.
    if any(char.isspace() for char in text):
        raise _Flaw("has a blank inside")
    from sentry_sdk.utils import Dsn  # noqa: PLC0415 - a start without a DSN need not wait for it

    try:
        parsed = Dsn(text)
    except ValueError:  # BadDsn is one
        raise _Flaw("has no scheme, key, host or project number") from None
    if ":" in parsed.host:
        raise _Flaw("has an IPv6 address for a host, which the SDK does not support")
    return text


def _matching(pattern: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError
        return text

    return parse


def _environment(text: str) -> str:
    if text == "None":
        raise _Flaw("is the word None")
    return _matching(r"[^\s/]{1,64}")(text)


def _bool(text: str) -> bool:
    return {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}[
        _matching("(?i)true|1|yes|on|false|0|no|off")(text).lower()
    ]


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise ValueError
    return seconds


def _count(text: str) -> int:
    return int(_matching("0*[1-9][0-9]{0,8}")(text))


def _level(text: str) -> str:
    return _matching("debug|info|warning|error")(text.lower())


@dataclass(frozen=True)
class Settings:
    """The runner's settings; each field is the environment variable of that name in capitals."""

    sentry_dsn: str | None = _setting("a Sentry DSN: https://KEY@HOST/PROJECT", _dsn, repr=False)
    # Sentry refuses other names: docs.sentry.io, "Releases" and "Environments".
    sentry_release: str | None = _setting(
        "at most 200 characters, without blanks and slashes", _matching(r"[^\s/\\]{1,200}")
    )
    sentry_environment: str = _setting(
        "at most 64 characters, without blanks and slashes, and not None", _environment, "development"
    )
    booty_release_dir: Path | None = _setting(  # noqa: RUF009 - it returns a field
        "the directory that holds the running code, named as SENTRY_RELEASE says", Path
    )
    booty_telemetry_gate: bool = _setting(
        "true or false: whether the tracker must accept an event before the service is ready", _bool, False
    )
    booty_telemetry_headers: str = _setting(
        "names of request headers, separated by commas, that are sent with an error",
        default="accept,content-length,content-type,host,user-agent",
    )
    booty_not_secret: str = _setting("names of variables, separated by commas, whose values may be shown", default="")
    booty_log_format: Literal["text", "json"] = _setting("text or json", _matching("text|json"), "text")
    booty_log_level: str = _setting("debug, info, warning or error", _level, "info")
    booty_workers: int = _setting("the number of processes that serve, 1 or more", _count, 1)
    booty_drain_seconds: float = _setting(
        "the seconds, 0 or more, that requests in flight may take after SIGTERM", _seconds, 30.0
    )
    booty_stream_seconds: float = _setting(
        "the seconds, 0 or more, that responses without an end in sight may take after SIGTERM", _seconds, 5.0
    )
    booty_idle_seconds: float = _setting(
        "the seconds, 0 or more, that an idle connection is kept after SIGTERM", _seconds, 1.0
    )
    booty_watchdog_seconds: float = _setting(
        "the seconds after which a process whose event loop hangs is killed, 0 for never", _seconds, 0.0
    )
    booty_candidate: bool = _setting(
        "true or false: whether this is a release on trial, which must pass all checks to start", _bool, False
    )
    state_directory: Path | None = _setting(  # noqa: RUF009 - it returns a field
        "a writable directory, given by systemd", Path
    )

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "Settings":
        """Read an environment; surrounding blanks are stripped, and an empty value counts as not set.

        Raises:
            Refusal: a value is not accepted; it shows no value.
        """
        values, flaws = {}, []
        for name, parse in ((each.name, each.metadata["parse"]) for each in fields(cls)):
            try:
                if text := environment.get(name.upper(), "").strip():
                    values[name] = parse(text)
            except ValueError as error:
                flaws.append(refusal(name, error if isinstance(error, _Flaw) else None))
        if flaws:
            raise Refusal("; ".join(flaws))
        return cls(**values)


def refusal(name: str, flaw: object = None) -> str:
    """Say in one line what a variable must be, and what is wrong with its value if that is known."""
    line = f"{name.upper()} must be {ACCEPTED[name.upper()]}"
    return f"{line} ({flaw})" if flaw else line


# What is accepted, by the variable's name.
ACCEPTED: dict[str, str] = {each.name.upper(): each.metadata["accepted"] for each in fields(Settings)}


@cache
def current() -> Settings:
    """Return this process's settings, as its environment was when they were first read.

    Raises:
        Refusal: a value is not accepted.
    """
    return Settings.read(environ)
