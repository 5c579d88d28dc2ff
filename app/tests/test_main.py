"""The app's errors under the runner: the tracker gets each one once, with its route."""

import http.client
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest
import sentry_sdk
from fastapi.testclient import TestClient
from runner.tests.clients import ask
from runner.tests.conftest import SRC
from sentry_sdk.utils import get_default_release

from booty.config import Settings
from booty.main import create_app


@pytest.fixture
def serve(start, tcp, tracker):
    def serve(**settings):
        path = f"{SRC}:{Path(__file__).parent}"
        return start(
            sockets=[tcp], app="failing:make_app()", PYTHONPATH=path, SENTRY_DSN=tracker.dsn, **settings
        ).ready()

    return serve


ERRORS = [
    ("/items/3", "/items/{number}", "LookupError"),
    ("/sync/3", "/sync/{number}", "LookupError"),
    ("/http/500", "/http/{status}", "HTTPException"),
    ("/http/503", "/http/{status}", "HTTPException"),
    ("/logged", "/logged", "ValueError"),
    ("/background", "/background", "LookupError"),
    ("/stream", "/stream", "LookupError"),
]


def test_each_error_arrives_once_and_rightly_labelled_and_a_client_s_error_does_not(serve, tcp, tracker):
    service = serve(SENTRY_RELEASE="abc", SENTRY_ENVIRONMENT="production")
    assert ask(tcp, "/http/404")[0] == 404
    assert ask(tcp, "/items/none")[0] == 422
    for path, _, _ in ERRORS:
        # /stream fails after its first bytes, so its response is incomplete.
        with pytest.raises(http.client.IncompleteRead) if path == "/stream" else nullcontext():
            ask(tcp, path)
    service.stop()
    assert service.wait()[0] == 0
    seen = [(event["transaction"], event["exception"]["values"][-1]["type"]) for event in tracker.events]
    assert seen == [error[1:] for error in ERRORS]
    assert {(event["release"], event["environment"]) for event in tracker.events} == {("abc", "production")}


def test_unset_release_is_absent_even_where_one_could_be_guessed(serve, tcp, tracker, tmp_path, monkeypatch):
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "a"], check=True)
    monkeypatch.setenv("SOURCE_VERSION", "guess")
    assert get_default_release()
    service = serve(SENTRY_RELEASE="", SOURCE_VERSION="guess")
    ask(tcp, "/items/3")
    service.stop()
    service.wait()
    (event,) = tracker.events
    assert "release" not in event


def test_sample_rate(serve, tcp, tracker):
    service = serve(SENTRY_SAMPLE_RATE="0")
    ask(tcp, "/items/3")
    service.stop()
    service.wait()
    assert tracker.events == []


def test_without_a_dsn_it_runs_and_reports_nothing():
    with TestClient(create_app(Settings(sentry_environment="staging"))) as client:
        assert client.get("/").status_code == 200
        assert not sentry_sdk.is_initialized()
