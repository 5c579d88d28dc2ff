import logging
from pathlib import Path

import pytest
from booty_runner import target
from booty_runner.settings import current
from fastapi.testclient import TestClient
from runner.tests.test_target import unreadable

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
    code = tmp_path / "abc" / "booty" / "main.py"
    code.parent.mkdir(parents=True)
    code.touch()
    monkeypatch.setattr(target, "code", code)
    monkeypatch.setenv("BOOTY_RELEASE_DIR", str(tmp_path / "abc"))
    monkeypatch.setenv("SENTRY_RELEASE", "abc")
    current.cache_clear()
    return tmp_path / "abc"


def test_running_code_that_went_away(release):
    assert answer(Settings())[0] == 200
    (release / "booty" / "main.py").unlink()
    status, body = answer(Settings())
    assert (status, body["status"]) == (503, "unavailable")
    assert body["reason"].startswith("the running code is gone from")


def test_running_code_that_is_not_the_label_s(release, monkeypatch):
    monkeypatch.setattr(target, "code", Path("/elsewhere/booty/main.py"))
    status, body = answer(Settings())
    assert status == 503
    assert body["reason"].endswith("but in /elsewhere/booty")


def test_a_release_that_can_not_be_read_is_logged_when_that_changes(release, tmp_path, caplog):
    caplog.set_level(logging.INFO)

    def lines():
        return [record.getMessage() for record in caplog.records if record.name == "booty.health"]

    code, app = release, create_app(Settings())
    denied = f"{code} can't be read: Permission denied"
    with TestClient(app) as client:

        def flaws(count):
            return {client.get("/health").json().get("reason") for _ in range(count)}

        with unreadable(code):
            assert flaws(1) == {denied}
        assert lines() == []  # a refused start writes its own line
        app.state.started = True
        assert flaws(2) == {None}
        with unreadable(code):
            assert flaws(3) == {denied}
        code.rename(tmp_path / "away")
        code.symlink_to(code)
        (loop,) = flaws(3)
        assert loop.startswith((f"{code} can't be read: ", "the running code is not in "))
        code.unlink()
        (tmp_path / "away").rename(code)
        assert flaws(3) == {None}
        with unreadable(code):
            assert flaws(2) == {denied}
    assert lines() == [
        f"/health answers 503: {denied}",
        f"/health answers 503: {loop}",
        "/health answers 200 again",
        f"/health answers 503: {denied}",
    ]


def test_head_is_get_without_a_body(tmp_path):
    with TestClient(create_app(Settings(state_directory=tmp_path / "missing"))) as client:
        got, headers = client.get("/health"), client.head("/health")
        assert (got.status_code, got.headers, headers.content) == (headers.status_code, headers.headers, b"")
        assert "head" not in client.get("/openapi.json").json()["paths"]["/health"]
