"""The runner's settings, read from the environment, checked and frozen. The class `Settings` lists them."""

import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from os import environ
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit


class Refusal(Exception):
    """The service refuses to start: a restart would not help. The message gives the reason in one line."""


class _Flaw(ValueError):
    """Says what is wrong with a value, without showing the value."""


def _setting(accepted: str, parse: Callable[[str], Any] = str, default: Any = None, **options: Any) -> Any:
    """Declare a setting: the accepted values, in words for `--help` and refusals; its parser; its default."""
    return field(default=default, metadata={"accepted": accepted, "parse": parse}, **options)


def _dsn(text: str) -> str:
    # First of all, because urlsplit silently drops tabs and newlines.
    if any(char.isspace() for char in text):
        raise _Flaw("has a blank inside")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    project = text.rpartition("/")[2].partition("?")[0].partition("#")[0]
    if not host or port == 0 or parts.scheme not in {"http", "https"} or not parts.username or not project.isdecimal():
        raise _Flaw("has no scheme, key, host or project number")
    if ":" in host:
        raise _Flaw("has an IPv6 address for a host, which the SDK does not support")
    return text


def _matching(pattern: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError
        return text

    return parse


def _whole(text: str) -> int:
    return int(_matching("0*[1-9][0-9]{0,8}")(text))


def _networks(text: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(entry.strip()) for entry in text.split(",") if entry.strip())


def _bool(text: str) -> bool:
    return ("false", "true", "0", "1", "no", "yes", "off", "on").index(text.lower()) % 2 == 1


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise ValueError
    return seconds


@dataclass(frozen=True)
class Settings:
    """The runner's settings; each field is the environment variable of that name in capitals."""

    sentry_dsn: str | None = _setting("a Sentry DSN: https://KEY@HOST/PROJECT", _dsn, repr=False)
    # Sentry refuses other names: docs.sentry.io, "Releases" and "Environments".
    sentry_release: str | None = _setting(
        "at most 200 characters, without blanks and slashes", _matching(r"[^\s/\\]{1,200}")
    )
    sentry_environment: str = _setting(
        "at most 64 characters, without blanks and slashes, and not None",
        _matching(r"(?!None$)[^\s/]{1,64}"),
        "development",
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
    booty_log_level: str = _setting(
        "debug, info, warning or error", lambda text: _matching("debug|info|warning|error")(text.lower()), "info"
    )
    booty_access_log: bool = _setting("true or false: whether to log each request", _bool, False)
    booty_workers: int = _setting("the number of processes that serve, 1 or more", _whole, 1)
    booty_threads: int = _setting(
        "the number of requests, 1 or more, that a process answers at a time if the app is a WSGI app", _whole, 10
    )
    booty_health_path: str = _setting(
        "a path, from its first slash on, that must answer 2xx before the service is ready",
        _matching(r"/[!-~]*"),
        "",
    )
    booty_health_host: str = _setting("the Host header of that question", _matching(r"[\w.:\[\]-]+"), "")
    booty_trusted_proxies: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = _setting(
        "addresses or networks (10.0.0.0/8), separated by commas, of proxies whose X-Forwarded-For and"
        " X-Forwarded-Proto are believed",
        _networks,
        (),
    )
    booty_config_dir: Path | None = _setting(  # noqa: RUF009 - it returns a field
        "a directory that comes first on the import path", Path
    )
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
        "true or false: whether this is a candidate, which must pass all checks to start", _bool, False
    )
    state_directory: Path | None = _setting(  # noqa: RUF009 - it returns a field
        "a writable directory, set by systemd", Path
    )

    @property
    def is_production(self) -> bool:
        """Whether the environment is `production` or `prod`, in any case."""
        return self.sentry_environment.lower() in {"production", "prod"}

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "Settings":
        """Read an environment; surrounding blanks are stripped, and an empty value counts as not set.

        Raises:
            Refusal: a value is not accepted; the message shows no value.
        """
        values, refusals = {}, []
        for name, parse in ((setting.name, setting.metadata["parse"]) for setting in fields(cls)):
            try:
                if text := environment.get(name.upper(), "").strip():
                    values[name] = parse(text)
            except ValueError as error:
                refusals.append(refusal(name, error if isinstance(error, _Flaw) else None))
        if refusals:
            raise Refusal("; ".join(refusals))
        return cls(**values)


# The accepted values in words, by the variable's name.
ACCEPTED: dict[str, str] = {setting.name.upper(): setting.metadata["accepted"] for setting in fields(Settings)}


def refusal(name: str, flaw: object = None) -> str:
    """Return one line with the values that a variable accepts, and the flaw of its value if that is known."""
    line = f"{name.upper()} must be {ACCEPTED[name.upper()]}"
    return f"{line} ({flaw})" if flaw else line


@cache
def current() -> Settings:
    """Return this process's settings, read from its environment by the first call.

    Raises:
        Refusal: a value is not accepted.
    """
    return Settings.read(environ)


@cache
def labels() -> dict[str, str]:
    """Return the release and the environment of this process's events. A label that no variable sets is left out."""
    settings = current()
    set_values = {
        "release": settings.sentry_release,
        "environment": environ.get("SENTRY_ENVIRONMENT", "").strip() and settings.sentry_environment,
    }
    return {name: label for name, label in set_values.items() if label}
