import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

import booty
from booty.config import Settings, explain

DSN = "https://publickey@tracker.example/7"
CODE = Path(booty.__file__).parent


def refusal(**values):
    with pytest.raises(ValidationError) as caught:
        Settings(**values)
    return explain(caught.value)


def test_defaults():
    assert Settings().model_dump() == {
        "sentry_dsn": None,
        "sentry_release": None,
        "sentry_environment": "development",
        "sentry_sample_rate": 1.0,
        "booty_queue_url": None,
        "booty_queue_jobs": 4,
        "state_directory": None,
    }


def test_environment_is_read_stripped_and_blank_is_unset(monkeypatch):
    monkeypatch.setenv("SENTRY_DSN", f" {DSN}\n")
    monkeypatch.setenv("SENTRY_RELEASE", " \t")
    monkeypatch.setenv("SENTRY_ENVIRONMENT", "")
    monkeypatch.setenv("SENTRY_SAMPLE_RATE", " 0.5 ")
    settings = Settings()
    assert settings.sentry_dsn.get_secret_value() == DSN
    assert settings.sentry_release is None
    assert settings.sentry_environment == "development"
    assert settings.sentry_sample_rate == 0.5


def test_frozen_and_silent_about_the_secret():
    settings = Settings(sentry_dsn=DSN)
    assert "publickey" not in repr(settings) + str(settings)
    with pytest.raises(ValidationError):
        settings.sentry_environment = "production"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sentry_sample_rate", "1.1"),
        ("sentry_sample_rate", "-0.1"),
        ("sentry_sample_rate", "nan"),
        ("sentry_sample_rate", "all"),
        ("booty_queue_jobs", "-1"),
        ("booty_queue_jobs", "many"),
    ],
)
def test_bad_value_is_one_line_that_names_the_variable(name, value):
    line = refusal(**{name: value})
    assert line.startswith(f"{name.upper()} must be {Settings.model_fields[name].description}")
    assert len(line.splitlines()) == 1


def test_all_bad_values_are_named_at_once():
    line = refusal(sentry_sample_rate="2", booty_queue_jobs="-1")
    assert line == (
        "SENTRY_SAMPLE_RATE must be the share of errors to send, from 0 to 1;"
        " BOOTY_QUEUE_JOBS must be how many jobs a process runs at once, 0 or more"
    )


def test_version_is_the_package_s():
    project = tomllib.loads((CODE.parents[1] / "pyproject.toml").read_text())["project"]
    assert project["version"] == booty.__version__


@pytest.mark.parametrize(
    ("url", "flaw"),
    [
        ("mysql://u:planted@h/d", "does not begin with postgresql://"),
        ("postgresql://u:planted@h", "names no database"),
        ("postgresql://u:planted @h/d", "has a blank inside"),
        ("postgresql://u:planted@[h/d", "is no URL"),
    ],
)
def test_a_queue_url_that_is_none(url, flaw):
    message = refusal(booty_queue_url=url)
    assert message.startswith("BOOTY_QUEUE_URL must be a PostgreSQL URL")
    assert message.endswith(f"({flaw})")
    assert "planted" not in message


@pytest.mark.parametrize("url", ["postgresql://u:p@h/d", "postgres://h/d", "postgresql:///d?host=/run/postgresql"])
def test_a_queue_url(url):
    assert Settings(booty_queue_url=url).booty_queue_url.get_secret_value() == url
