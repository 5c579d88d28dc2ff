"""Settings: read once from the environment, checked, and frozen."""

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict
from sentry_sdk.utils import Dsn

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """The service's settings; each field is the environment variable of that name in capitals.

    Surrounding blanks are stripped and an empty value counts as not set. A description says what is
    accepted, and is what `explain` prints when a value is not.

    Raises:
        pydantic.ValidationError: a value is not accepted; pass it to `explain`.
    """

    model_config = SettingsConfigDict(frozen=True, hide_input_in_errors=True)

    sentry_dsn: SecretStr | None = Field(default=None, description="a Sentry DSN: https://KEY@HOST/PROJECT")
    # Sentry refuses other names: docs.sentry.io, "Releases" and "Environments".
    sentry_release: Annotated[str, StringConstraints(pattern=r"^[^\s/\\]{1,200}$")] | None = Field(
        default=None, description="at most 200 characters, without blanks and slashes"
    )
    sentry_environment: Annotated[str, StringConstraints(pattern=r"^[^\s/]{1,64}$")] = Field(
        default="development", description="at most 64 characters, without blanks and slashes, and not None"
    )
    sentry_sample_rate: float = Field(default=1.0, ge=0, le=1, description="the share of errors to send, from 0 to 1")
    booty_release_dir: Path | None = Field(
        default=None, description="the directory that holds the running code, named as SENTRY_RELEASE says"
    )
    booty_telemetry_gate: bool = Field(
        default=False, description="true or false: whether the tracker must accept an event before the service is ready"
    )
    booty_telemetry_headers: str = Field(
        default="accept,content-length,content-type,host,user-agent",
        description="names of request headers, separated by commas, that are sent with an error",
    )
    booty_not_secret: str = Field(
        default="", description="names of variables, separated by commas, whose values may be shown"
    )
    booty_log_format: Literal["text", "json"] = Field(default="text", description="text or json")
    booty_log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="debug, info, warning or error"
    )
    booty_workers: int = Field(default=1, ge=1, description="the number of processes that serve, 1 or more")
    booty_drain_seconds: Seconds = Field(
        default=30.0, description="the seconds, 0 or more, that requests in flight may take after SIGTERM"
    )
    booty_stream_seconds: Seconds = Field(
        default=5.0, description="the seconds, 0 or more, that responses without an end in sight may take after SIGTERM"
    )
    booty_idle_seconds: Seconds = Field(
        default=1.0, description="the seconds, 0 or more, that an idle connection is kept after SIGTERM"
    )
    booty_watchdog_seconds: Seconds = Field(
        default=0.0,
        description="the seconds after which a process whose event loop hangs is killed, 0 for never",
    )
    booty_queue_url: SecretStr | None = Field(
        default=None,
        description="a PostgreSQL URL, postgresql://USER:PASSWORD@HOST/DATABASE, for a queue that hosts share",
    )
    booty_queue_jobs: int = Field(default=4, ge=0, description="how many jobs a process runs at once, 0 or more")
    booty_candidate: bool = Field(
        default=False,
        description="true or false: whether this is a release on trial, which must pass all checks to start",
    )
    state_directory: Path | None = Field(default=None, description="a writable directory, given by systemd")

    @model_validator(mode="before")
    @classmethod
    def _blank_is_unset(cls, values: dict[str, object]) -> dict[str, object]:
        stripped = {name: v.strip() if isinstance(v, str) else v for name, v in values.items()}
        return {name: v for name, v in stripped.items() if v != ""}

    @field_validator("booty_log_level", mode="before")
    @classmethod
    def _any_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("sentry_environment")
    @classmethod
    def _not_none(cls, value: str) -> str:
        if value == "None":
            raise ValueError("is the word None")
        return value

    @field_validator("sentry_dsn")
    @classmethod
    def _usable_dsn(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and (flaw := _dsn_flaw(value.get_secret_value())):
            raise ValueError(flaw)
        return value

    @field_validator("booty_queue_url")
    @classmethod
    def _usable_queue(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and (flaw := _queue_flaw(value.get_secret_value())):
            raise ValueError(flaw)
        return value

    @field_validator("booty_release_dir")
    @classmethod
    def _label_fits_code(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        # A SENTRY_RELEASE that is itself refused is not in the data; its own error says enough.
        if "sentry_release" in info.data and (flaw := _label_flaw(value, info.data["sentry_release"])):
            raise ValueError(flaw)
        return value

    @property
    def is_production(self) -> bool:
        """Whether the environment is `production` or `prod`, in any case."""
        return self.sentry_environment.lower() in {"production", "prod"}

    @property
    def label_flaw(self) -> str | None:
        """Why the running code is not the release it is labelled as, or None; asked anew each time."""
        return _label_flaw(self.booty_release_dir, self.sentry_release)


def _dsn_flaw(dsn: str) -> str | None:
    """Say what is wrong with a DSN, in words that hold nothing of it, or None."""
    # urlsplit drops tabs and newlines in silence, so this comes first.
    if any(char.isspace() for char in dsn):
        return "has a blank inside"
    try:
        parsed = Dsn(dsn)
    except ValueError:  # BadDsn is one
        return "has no scheme, key, host or project number"
    if ":" in parsed.host:
        return "has an IPv6 address for a host, which the SDK does not support"
    return None


def _queue_flaw(url: str) -> str | None:
    """Say what is wrong with a PostgreSQL URL, in words that hold nothing of it, or None."""
    if any(char.isspace() for char in url):
        return "has a blank inside"
    try:
        parts = urlsplit(url)
    except ValueError:
        return "is no URL"
    if parts.scheme not in {"postgresql", "postgres"}:
        return "does not begin with postgresql://"
    return None if parts.path.strip("/") else "names no database"


def _label_flaw(release_dir: Path | None, release: str | None) -> str | None:
    if release_dir is None:
        return None
    try:
        directory, code = release_dir.resolve(), Path(__file__).resolve()
        if not code.is_relative_to(directory):
            return f"the running code is not in {directory} but in {code.parent}"
        if directory.name != release:
            return f"the directory is named {directory.name}, SENTRY_RELEASE is {release or 'not set'}"
        code.stat()
    except (FileNotFoundError, NotADirectoryError):
        return f"the running code is gone from {Path(__file__).parent}"
    except (OSError, RuntimeError) as error:  # the latter for links in a circle
        return f"{release_dir} can't be read: {error.strerror if isinstance(error, OSError) else error}"
    return None


def explain(error: ValidationError) -> str:
    """Turn what `Settings()` raised into one line that names the variables and shows no value of a secret."""

    def line(name: str, reason: str | None) -> str:
        accepted = f"{name.upper()} must be {Settings.model_fields[name].description}"
        return f"{accepted} ({reason})" if reason else accepted

    return "; ".join(
        line(str(flaw["loc"][0]), str(flaw["ctx"]["error"]) if flaw["type"] == "value_error" else None)
        for flaw in error.errors()
    )
