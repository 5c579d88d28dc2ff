"""Settings: read once from the environment, checked, and frozen. The runner has its own, and checks DSN and labels."""

import logging
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

log = logging.getLogger(__name__)


class Settings(BaseSettings):
    """The app's settings; each field is the environment variable of that name in capitals.

    Surrounding blanks are stripped and an empty value counts as not set. A description says what is
    accepted, and is what `explain` prints when a value is not.

    Raises:
        pydantic.ValidationError: a value is not accepted; pass it to `explain`.
    """

    model_config = SettingsConfigDict(frozen=True, hide_input_in_errors=True)

    sentry_dsn: SecretStr | None = Field(default=None, description="a Sentry DSN: https://KEY@HOST/PROJECT")
    sentry_release: str | None = Field(default=None, description="a release's label in Sentry")
    sentry_environment: str = Field(default="development", description="an environment's label in Sentry")
    sentry_sample_rate: float = Field(default=1.0, ge=0, le=1, description="the share of errors to send, from 0 to 1")
    booty_queue_url: SecretStr | None = Field(
        default=None,
        description="a PostgreSQL URL, postgresql://USER:PASSWORD@HOST/DATABASE, for a queue that hosts share",
    )
    booty_queue_jobs: int = Field(default=4, ge=0, description="how many jobs a process runs at once, 0 or more")
    state_directory: Path | None = Field(default=None, description="a writable directory, given by systemd")

    @model_validator(mode="before")
    @classmethod
    def _blank_is_unset(cls, values: dict[str, object]) -> dict[str, object]:
        stripped = {name: v.strip() if isinstance(v, str) else v for name, v in values.items()}
        return {name: v for name, v in stripped.items() if v != ""}

    @field_validator("booty_queue_url")
    @classmethod
    def _usable_queue(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and (flaw := _queue_flaw(value.get_secret_value())):
            raise ValueError(flaw)
        return value

    @property
    def is_production(self) -> bool:
        """Whether the environment is `production` or `prod`, in any case."""
        return self.sentry_environment.lower() in {"production", "prod"}


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


def explain(error: ValidationError) -> str:
    """Turn what `Settings()` raised into one line that names the variables and shows no value of a secret."""

    def line(name: str, reason: str | None) -> str:
        accepted = f"{name.upper()} must be {Settings.model_fields[name].description}"
        return f"{accepted} ({reason})" if reason else accepted

    return "; ".join(
        line(str(flaw["loc"][0]), str(flaw["ctx"]["error"]) if flaw["type"] == "value_error" else None)
        for flaw in error.errors()
    )


def from_environment() -> Settings:
    """Read the settings.

    Raises:
        SystemExit: with status 1, when a value is not accepted; one line of the log says which and why.
    """
    try:
        return Settings()
    except ValidationError as error:
        log.error(explain(error))
        raise SystemExit(1) from None
