"""The app's settings, read from the environment, checked, frozen. The runner has checked the DSN and the labels."""

import logging
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

log = logging.getLogger(__name__)


class Settings(BaseSettings):
    """The app's settings; each field is the environment variable of that name in capitals.

    Surrounding blanks are stripped and an empty value counts as not set. A field's description says which values are
    accepted; `explain` shows it when a value is not.

    Raises:
        pydantic.ValidationError: a value is not accepted; pass the error to `explain`.
    """

    model_config = SettingsConfigDict(frozen=True, hide_input_in_errors=True)

    sentry_dsn: SecretStr | None = None
    sentry_release: str | None = None
    sentry_environment: str = "development"
    sentry_sample_rate: float = Field(default=1.0, ge=0, le=1, description="the share of errors to send, from 0 to 1")
    booty_queue_url: SecretStr | None = Field(
        default=None,
        description="a PostgreSQL URL, postgresql://USER:PASSWORD@HOST/DATABASE, for a queue that hosts share",
    )
    booty_queue_jobs: int = Field(default=4, ge=0, description="how many jobs a process runs at once, 0 or more")
    state_directory: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _blank_is_unset(cls, values: dict[str, object]) -> dict[str, object]:
        stripped = {name: value.strip() if isinstance(value, str) else value for name, value in values.items()}
        return {name: value for name, value in stripped.items() if value != ""}

    @field_validator("booty_queue_url")
    @classmethod
    def _check_queue_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        url = value.get_secret_value()
        # The messages of these errors are shown, so they contain nothing of the URL.
        if any(char.isspace() for char in url):
            raise ValueError("has a blank inside")
        try:
            parts = urlsplit(url)
        except ValueError:
            raise ValueError("is no URL") from None
        if parts.scheme not in {"postgresql", "postgres"}:
            raise ValueError("does not begin with postgresql://")
        if not parts.path.strip("/"):
            raise ValueError("names no database")
        return value


def explain(error: ValidationError) -> str:
    """Return one line that names each refused variable and the values that it accepts, without showing its value."""
    lines = []
    for refused in error.errors():
        name = str(refused["loc"][0])
        flaw = f" ({refused['ctx']['error']})" if refused["type"] == "value_error" else ""
        lines.append(f"{name.upper()} must be {Settings.model_fields[name].description}{flaw}")
    return "; ".join(lines)


def from_environment() -> Settings:
    """Read the settings.

    Raises:
        SystemExit: with status 1 when a value is not accepted, after logging one line with the reason.
    """
    try:
        return Settings()
    except ValidationError as error:
        log.error(explain(error))
        raise SystemExit(1) from None
