import asyncio
import http.client
import logging
import os
import subprocess
import sys
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sentry_sdk
from fastapi import APIRouter, BackgroundTasks, HTTPException
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from runner.tests.conftest import ROOT, SRC
from sentry_sdk.utils import get_default_release

from booty.config import Settings
from booty.main import create_app


def make_app(**settings):
    app = create_app(Settings(**settings))
    app.get("/items/{number}")(fail)
    app.get("/sync/{number}")(fail_in_thread)
    app.get("/http/{status}")(fail_http)
    app.get("/logged")(fail_logged)
    app.get("/background")(fail_in_background)
    app.get("/stream")(fail_in_stream)
    return app


async def fail(number: int):
    raise LookupError(number)


def fail_in_thread(number: int):
    raise LookupError(number)


async def fail_http(status: int):
    raise HTTPException(status)


async def fail_logged():
    try:
        raise ValueError("seen")
    except ValueError:
        logging.getLogger("shop").exception("went wrong")


async def fail_in_background(tasks: BackgroundTasks):
    tasks.add_task(fail, 1)


async def fail_in_stream():
    async def body():
        yield b"begun"
        raise LookupError(1)

    return StreamingResponse(body())


def test_production_without_dsn_does_not_start_under_a_test_client_either():
    # SystemExit ends the event loop in the client's thread; the client itself sees its call cancelled.
    app = create_app(Settings(sentry_environment="production"))
    with pytest.raises((SystemExit, CancelledError)), TestClient(app):
        pytest.fail("started")


@pytest.mark.parametrize("environment", ["production", "Prod"])
def test_production_without_dsn_refuses(environment, caplog):
    app = create_app(Settings(sentry_environment=environment))

    async def start():
        async with app.router.lifespan_context(app):
            pytest.fail("started")

    with pytest.raises(SystemExit) as caught:
        asyncio.run(start())
    assert caught.value.code == 1
    (record,) = [record for record in caplog.records if record.name == "booty.main"]
    assert record.levelname == "ERROR"
    assert record.getMessage() == f"SENTRY_DSN is not set, and {environment} does not run without it"


def test_elsewhere_without_dsn_says_so_once_and_runs(caplog):
    caplog.set_level(logging.INFO, "booty.main")
    with TestClient(create_app(Settings(sentry_environment="staging"))) as client:
        assert client.get("/").status_code == 200
        assert not sentry_sdk.is_initialized()
    (record,) = [record for record in caplog.records if record.name == "booty.main"]
    assert record.levelname == "INFO"
    assert "staging" in record.getMessage()


@pytest.mark.parametrize(
    ("path", "transaction", "error"),
    [
        ("/items/3", "/items/{number}", "LookupError"),
        ("/sync/3", "/sync/{number}", "LookupError"),
        ("/http/500", "/http/{status}", "HTTPException"),
        ("/http/503", "/http/{status}", "HTTPException"),
        ("/logged", "/logged", "ValueError"),
        ("/background", "/background", "LookupError"),
        ("/stream", "/stream", "LookupError"),
    ],
)
def test_error_arrives_once_and_rightly_labelled(tracker, path, transaction, error):
    app = make_app(sentry_dsn=tracker.dsn, sentry_release="abc", sentry_environment="production")
    with TestClient(app, raise_server_exceptions=False) as client:
        client.get(path)
    (event,) = tracker.events
    assert (event["release"], event["environment"]) == ("abc", "production")
    assert event["transaction"] == transaction
    assert event["exception"]["values"][-1]["type"] == error


def test_http_exception_is_reported_by_the_first_app_of_a_process(tracker):
    """Sentry patches the middleware for good: only in a new process does it matter when it was built."""
    script = f"""
from test_main import TestClient, make_app
with TestClient(make_app(sentry_dsn={tracker.dsn!r})) as client:
    client.get("/http/503")
"""
    subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": f"{SRC}:{ROOT}"},
        check=True,
    )
    (event,) = tracker.events
    assert event["exception"]["values"][-1]["type"] == "HTTPException"


def test_client_error_is_no_event(tracker):
    with TestClient(make_app(sentry_dsn=tracker.dsn)) as client:
        assert client.get("/http/404").status_code == 404
        assert client.get("/items/none").status_code == 422
    assert tracker.events == []


def test_unset_release_is_absent_even_where_one_could_be_guessed(tracker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "a"], check=True)
    monkeypatch.setenv("SENTRY_RELEASE", "")
    monkeypatch.setenv("SOURCE_VERSION", "guess")
    assert get_default_release()
    with TestClient(make_app(sentry_dsn=tracker.dsn), raise_server_exceptions=False) as client:
        client.get("/items/3")
    (event,) = tracker.events
    assert "release" not in event


def test_sample_rate(tracker):
    app = make_app(sentry_dsn=tracker.dsn, sentry_sample_rate=0)
    with TestClient(app, raise_server_exceptions=False) as client:
        client.get("/items/3")
    assert tracker.events == []


@pytest.mark.parametrize("moment", ["startup", "shutdown"])
def test_error_of_the_lifespan_arrives_once(tracker, moment):
    @asynccontextmanager
    async def broken(_):
        if moment == "startup":
            raise ConnectionError(moment)
        yield
        raise ConnectionError(moment)

    app = make_app(sentry_dsn=tracker.dsn)
    app.include_router(APIRouter(lifespan=broken))
    with pytest.raises(ConnectionError), TestClient(app):
        pass
    (event,) = tracker.events
    assert event["exception"]["values"][-1]["type"] == "ConnectionError"


def test_event_holds_no_locals_body_arguments_or_credentials(tracker):
    app = make_app(sentry_dsn=tracker.dsn)
    with TestClient(app, raise_server_exceptions=False) as client:
        headers = {"authorization": "Bearer planted", "cookie": "session=planted"}
        client.request("GET", "/items/3", headers=headers, content="planted")
    (event,) = tracker.events
    assert "planted" not in str(event)
    assert "sys.argv" not in event.get("extra", {})
    frames = event["exception"]["values"][-1]["stacktrace"]["frames"]
    assert frames
    assert not any("vars" in frame for frame in frames)


def test_outgoing_requests_carry_no_sentry_headers(tracker, other_host):
    app = make_app(sentry_dsn=tracker.dsn)

    @app.get("/call")
    def call():
        connection = http.client.HTTPConnection(other_host.url.removeprefix("http://"))
        connection.request("GET", "/")
        connection.getresponse().read()
        connection.close()

    with TestClient(app) as client:
        assert client.get("/call").status_code == 200
    (request,) = other_host.requests
    assert not {"sentry-trace", "baggage"} & {name.lower() for name in request.headers}


def test_apps_of_one_process_do_not_share_sentry(tracker):
    app = make_app(sentry_dsn=tracker.dsn, sentry_release="first")
    assert not sentry_sdk.is_initialized()
    for _ in range(2):
        with TestClient(app, raise_server_exceptions=False) as client:
            client.get("/items/3")
        assert not sentry_sdk.is_initialized()
    with TestClient(make_app(), raise_server_exceptions=False) as client:
        client.get("/items/3")
    assert [event["release"] for event in tracker.events] == ["first", "first"]
