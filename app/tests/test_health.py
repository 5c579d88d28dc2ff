import pytest
from fastapi.testclient import TestClient

from booty import config
from booty.config import Settings
from booty.main import create_app


def answer(settings):
    with TestClient(create_app(settings)) as client:
        response = client.get("/health")
    return response.status_code, response.json()


def test_ok(tmp_path):
    settings = Settings(sentry_release="abc", sentry_environment="staging", state_directory=tmp_path)
    assert answer(settings) == (200, {"status": "ok", "release": "abc", "environment": "staging"})
    assert list(tmp_path.iterdir()) == []


def test_unknown_release_is_null():
    assert answer(Settings())[1]["release"] is None


def test_not_started():
    response = TestClient(create_app(Settings())).get("/health")
    assert response.status_code == 503
    assert response.json() == {"status": "unavailable", "reason": "the startup is not complete"}


def test_state_directory_that_cannot_be_written(tmp_path):
    missing = tmp_path / "missing"
    status, body = answer(Settings(state_directory=missing))
    assert status == 503
    assert body["reason"] == f"{missing} is not writable: No such file or directory"


@pytest.fixture
def release(tmp_path, monkeypatch):
    """A release directory that seems to hold the running code."""
    code = tmp_path / "abc" / "booty" / "config.py"
    code.parent.mkdir(parents=True)
    code.touch()
    monkeypatch.setattr(config, "__file__", str(code))
    return Settings(booty_release_dir=tmp_path / "abc", sentry_release="abc")


def test_running_code_that_went_away(release):
    assert answer(release)[0] == 200
    (release.booty_release_dir / "booty" / "config.py").unlink()
    status, body = answer(release)
    assert (status, body["status"]) == (503, "unavailable")
    assert body["reason"].startswith("the running code is gone from")


def test_running_code_that_is_not_the_label_s(release, monkeypatch):
    monkeypatch.setattr(config, "__file__", "/elsewhere/booty/config.py")
    status, body = answer(release)
    assert status == 503
    assert body["reason"].endswith("but in /elsewhere/booty")
