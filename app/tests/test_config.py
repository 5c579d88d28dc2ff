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
        "booty_release_dir": None,
        "booty_telemetry_gate": False,
        "booty_telemetry_headers": "accept,content-length,content-type,host,user-agent",
        "booty_not_secret": "",
        "booty_log_format": "text",
        "booty_log_level": "info",
        "booty_workers": 1,
        "booty_drain_seconds": 30.0,
        "booty_stream_seconds": 5.0,
        "booty_idle_seconds": 1.0,
        "booty_watchdog_seconds": 0.0,
        "booty_queue_url": None,
        "booty_queue_jobs": 4,
        "booty_candidate": False,
        "state_directory": None,
    }


def test_environment_is_read_stripped_and_blank_is_unset(monkeypatch):
    monkeypatch.setenv("SENTRY_DSN", f" {DSN}\n")
    monkeypatch.setenv("SENTRY_RELEASE", " \t")
    monkeypatch.setenv("SENTRY_ENVIRONMENT", "")
    monkeypatch.setenv("SENTRY_SAMPLE_RATE", " 0.5 ")
    monkeypatch.setenv("BOOTY_LOG_LEVEL", "WARNING")
    settings = Settings()
    assert settings.sentry_dsn.get_secret_value() == DSN
    assert settings.sentry_release is None
    assert settings.sentry_environment == "development"
    assert settings.sentry_sample_rate == 0.5
    assert settings.booty_log_level == "warning"


def test_frozen_and_silent_about_the_secret():
    settings = Settings(sentry_dsn=DSN)
    assert "publickey" not in repr(settings) + str(settings)
    with pytest.raises(ValidationError):
        settings.sentry_environment = "production"


@pytest.mark.parametrize(
    ("dsn", "reason"),
    [
        ("https://s3cret@tracker.example /7", "has a blank inside"),
        ("https://s3c\tret@tracker.example/7", "has a blank inside"),
        ("s3cret", "has no scheme, key, host or project number"),
        ("ftp://s3cret@tracker.example/7", "has no scheme, key, host or project number"),
        ("https://tracker.example/s3cret", "has no scheme, key, host or project number"),
        ("https://s3cret@/7", "has no scheme, key, host or project number"),
        ("https://s3cret@tracker.example/", "has no scheme, key, host or project number"),
        ("https://s3cret@tracker.example:port/7", "has no scheme, key, host or project number"),
        ("https://s3cret@[::1]/7", "has an IPv6 address for a host, which the SDK does not support"),
    ],
)
def test_bad_dsn_is_refused_without_showing_it(dsn, reason):
    assert refusal(sentry_dsn=dsn) == f"SENTRY_DSN must be a Sentry DSN: https://KEY@HOST/PROJECT ({reason})"
    with pytest.raises(ValidationError) as caught:
        Settings(sentry_dsn=dsn)
    assert "s3c" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sentry_release", "a/b"),
        ("sentry_release", "a b"),
        ("sentry_release", "x" * 201),
        ("sentry_environment", "pro duction"),
        ("sentry_environment", "a/b"),
        ("sentry_environment", "a\nb"),
        ("sentry_environment", "x" * 65),
        ("sentry_environment", "None"),
        ("sentry_sample_rate", "1.1"),
        ("sentry_sample_rate", "-0.1"),
        ("sentry_sample_rate", "nan"),
        ("sentry_sample_rate", "all"),
        ("booty_telemetry_gate", "perhaps"),
        ("booty_log_format", "xml"),
        ("booty_log_level", "loud"),
        ("booty_drain_seconds", "-1"),
        ("booty_drain_seconds", "inf"),
        ("booty_stream_seconds", "-1"),
        ("booty_idle_seconds", "soon"),
        ("booty_release_dir", "/nowhere"),
    ],
)
def test_bad_value_is_one_line_that_names_the_variable(name, value):
    line = refusal(**{name: value})
    assert line.startswith(f"{name.upper()} must be {Settings.model_fields[name].description}")
    assert len(line.splitlines()) == 1


def test_all_bad_values_are_named_at_once():
    line = refusal(sentry_sample_rate="2", booty_log_format="xml")
    assert line == (
        "SENTRY_SAMPLE_RATE must be the share of errors to send, from 0 to 1; BOOTY_LOG_FORMAT must be text or json"
    )


@pytest.mark.parametrize(
    ("environment", "expected"),
    [("production", True), ("Prod", True), ("PRODUCTION", True), ("staging", False), ("preprod", False)],
)
def test_is_production(environment, expected):
    assert Settings(sentry_environment=environment).is_production is expected


def test_label_must_fit_the_running_code(tmp_path):
    link = tmp_path / "current"
    link.symlink_to(CODE)
    for directory in (CODE, link):
        assert Settings(booty_release_dir=directory, sentry_release="booty").label_flaw is None
    assert "the directory is named booty, SENTRY_RELEASE is other" in refusal(
        booty_release_dir=CODE, sentry_release="other"
    )
    assert "the directory is named booty, SENTRY_RELEASE is not set" in refusal(booty_release_dir=CODE)
    assert f"the running code is not in {tmp_path} but in {CODE}" in refusal(
        booty_release_dir=tmp_path, sentry_release=tmp_path.name
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
