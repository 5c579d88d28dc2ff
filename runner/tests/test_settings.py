import tomllib
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path

import pytest

import booty_runner
from booty_runner.settings import ACCEPTED, Refusal, Settings

DSN = "https://publickey@tracker.example/7"


def read(**values):
    return Settings.read({name.upper(): value for name, value in values.items()})


def refusal(**values):
    with pytest.raises(Refusal) as caught:
        read(**values)
    return str(caught.value)


def test_defaults():
    assert asdict(read()) == {
        "sentry_dsn": None,
        "sentry_release": None,
        "sentry_environment": "development",
        "booty_release_dir": None,
        "booty_telemetry_gate": False,
        "booty_telemetry_headers": "accept,content-length,content-type,host,user-agent",
        "booty_not_secret": "",
        "booty_log_format": "text",
        "booty_log_level": "info",
        "booty_workers": 1,
        "booty_access_log": False,
        "booty_threads": 10,
        "booty_health_path": "",
        "booty_health_host": "",
        "booty_trusted_proxies": (),
        "booty_config_dir": None,
        "booty_drain_seconds": 30.0,
        "booty_stream_seconds": 5.0,
        "booty_idle_seconds": 1.0,
        "booty_watchdog_seconds": 0.0,
        "booty_candidate": False,
        "state_directory": None,
    }


def test_environment_is_read_stripped_and_blank_is_unset():
    settings = read(
        sentry_dsn=f" {DSN}\n",
        sentry_release=" \t",
        sentry_environment="",
        booty_drain_seconds=" 0.5 ",
        booty_log_level="WARNING",
        booty_telemetry_gate="True",
        booty_release_dir="/opt",
    )
    assert settings.sentry_dsn == DSN
    assert settings.sentry_release is None
    assert settings.sentry_environment == "development"
    assert settings.booty_drain_seconds == 0.5
    assert settings.booty_log_level == "warning"
    assert settings.booty_telemetry_gate is True
    assert settings.booty_release_dir == Path("/opt")


def test_frozen_and_silent_about_the_secret():
    settings = read(sentry_dsn=DSN)
    assert "publickey" not in repr(settings) + str(settings)
    with pytest.raises(FrozenInstanceError):
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
        ("booty_telemetry_gate", "perhaps"),
        ("booty_log_format", "xml"),
        ("booty_log_level", "loud"),
        ("booty_drain_seconds", "-1"),
        ("booty_drain_seconds", "inf"),
        ("booty_stream_seconds", "-1"),
        ("booty_idle_seconds", "soon"),
        ("booty_workers", "0"),
        ("booty_workers", "two"),
        ("booty_threads", "0"),
        ("booty_health_path", "health"),
        ("booty_health_path", "/a b"),
        ("booty_health_host", "a b"),
        ("booty_trusted_proxies", "10.0.0.1/8"),
        ("booty_trusted_proxies", "proxy.example.com"),
        ("booty_candidate", "2"),
    ],
)
def test_bad_value_is_one_line_that_names_the_variable(name, value):
    line = refusal(**{name: value})
    assert line.startswith(f"{name.upper()} must be {ACCEPTED[name.upper()]}")
    assert len(line.splitlines()) == 1


def test_all_bad_values_are_named_at_once():
    line = refusal(booty_log_level="loud", booty_log_format="xml")
    assert line == ("BOOTY_LOG_FORMAT must be text or json; BOOTY_LOG_LEVEL must be debug, info, warning or error")


def test_version_is_the_package_s():
    code = Path(booty_runner.__file__).parent
    project = tomllib.loads((code.parents[1] / "pyproject.toml").read_text())["project"]
    assert project["version"] == booty_runner.__version__


@pytest.mark.parametrize(
    ("environment", "expected"),
    [("production", True), ("Prod", True), ("PRODUCTION", True), ("staging", False), ("preprod", False)],
)
def test_is_production(environment, expected):
    assert Settings(sentry_environment=environment).is_production is expected
