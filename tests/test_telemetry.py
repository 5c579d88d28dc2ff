"""Errors of the real service on a real host, in a real tracker: each once, rightly labelled, without secrets."""

from __future__ import annotations

import http.client
import threading
import time
from contextlib import closing, suppress
from typing import Any

import pytest

from tests.conftest import Site

PLANTED = "hunter2-planted-secret"

ROUTES = '''
import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse


class Planned(RuntimeError):
    pass


def once(moment: str) -> None:
    """Fail at the moment that a file names, which is then gone: the next start finds all well."""
    file = Path(os.environ["STATE_DIRECTORY"], moment)
    if file.exists():
        file.unlink()
        raise Planned(moment)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    once("startup")
    yield
    once("shutdown")


router = APIRouter(lifespan=lifespan)
waiting, everybody = [], asyncio.Event()


async def middleware(request: Request, call_next) -> Response:
    if "x-fail" in request.headers:
        raise Planned("middleware")
    return await call_next(request)


def fail(what: str = "dependency") -> None:
    raise Planned(what)


@router.get("/")
async def greet() -> str:
    return "hello"


@router.get("/async/{number}")
async def in_async(number: int) -> None:
    raise Planned("async")


@router.get("/sync/{number}")
def in_sync(number: int) -> None:
    raise Planned("sync")


@router.get("/dependency", dependencies=[Depends(lambda: fail())])
async def in_dependency() -> None:
    pass


@router.get("/background")
async def in_background(tasks: BackgroundTasks) -> None:
    tasks.add_task(fail, "background")


@router.get("/stream")
async def in_stream() -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        yield b"begun"
        raise Planned("stream")

    return StreamingResponse(body())


@router.get("/http")
async def in_http() -> None:
    raise HTTPException(500, "http")


@router.get("/logged")
async def in_log() -> None:
    try:
        raise Planned("logged")
    except Planned:
        logging.getLogger("shop").exception("went wrong")


@router.get("/ten/{number}")
async def ten(number: int) -> None:
    waiting.append(number)
    if len(waiting) == 10:
        everybody.set()
        os.kill(os.getpid(), signal.SIGTERM)
    await everybody.wait()
    raise Planned(f"ten {number}")


@router.get("/leak")
def leak() -> None:
    secret = os.environ["PLANTED"]
    logging.getLogger("shop").info("using %s", secret)
    logging.getLogger("shop").error("can't use %s", secret)
    raise Planned(f"no database at {os.environ['DATABASE_URL']} with pw-of-db, and {secret}")
'''


@pytest.fixture(scope="module")
def release(site: Site) -> str:
    """Deploy an app that fails on request, and return its SHA."""
    main = (site.repository.path / "app/src/booty/main.py").read_text()
    hook = "    app.include_router(routes.router)\n"
    assert hook in main
    site.repository.write(
        "app/src/booty/main.py", main.replace(hook, f'{hook}    app.middleware("http")(routes.middleware)\n')
    )
    try:
        sha = site.release(text=ROUTES)
        site.deploy()
    finally:
        site.repository.write("app/src/booty/main.py", main)
    return sha


def ask(site: Site, path: str, **headers: str) -> int:
    """Return the status of the answer, 200 also when it breaks off."""
    with closing(http.client.HTTPConnection(site.host.address, 8000, timeout=20)) as connection:
        connection.request("GET", path, headers={"Connection": "close", **headers})
        with connection.getresponse() as answer:
            with suppress(http.client.IncompleteRead):
                answer.read()
            return answer.status


def received(site: Site, known: set[str], count: int) -> list[dict[str, Any]]:
    """Wait for so many events, and a moment longer in case that there are more; return what came."""
    deadline = time.monotonic() + 20
    while len(new := {event["id"] for event in site.tracker.events()} - known) < count and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    new = {event["id"] for event in site.tracker.events()} - known
    return [site.tracker.event(id).data for id in new]


def known(site: Site) -> set[str]:
    return {event["id"] for event in site.tracker.events()}


def summary(events: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Return type, text and transaction of each error."""
    errors = [(event["exception"]["values"][-1], event["transaction"]) for event in events]
    return sorted((error["type"], error["value"], transaction) for error, transaction in errors)


def test_every_error_of_a_request_arrives_once_and_rightly_labelled(site: Site, release: str) -> None:
    before = known(site)
    for path in ("/async/1", "/sync/1", "/dependency", "/http"):
        assert ask(site, path) == 500
    for path in ("/background", "/stream", "/logged"):
        assert ask(site, path) == 200
    assert ask(site, "/async/2", **{"X-Fail": "1", "X-Request-ID": "asked-by-test"}) == 500
    events = received(site, before, 8)
    assert summary(events) == [
        ("HTTPException", "http", "/http"),
        ("Planned", "async", "/async/{number}"),
        ("Planned", "background", "/background"),
        ("Planned", "dependency", "/dependency"),
        ("Planned", "logged", "/logged"),
        ("Planned", "middleware", "/async/{number}"),
        ("Planned", "stream", "/stream"),
        ("Planned", "sync", "/sync/{number}"),
    ]
    assert {(event["release"], event["environment"]) for event in events} == {(release, "staging")}
    for event in events:
        *_, frame = event["exception"]["values"][-1]["stacktrace"]["frames"]
        assert frame["in_app"]
        assert "raise " in frame["context_line"]
        assert "vars" not in frame
        assert event["request"]["method"] == "GET"
        assert len(event["tags"]["request_id"]) in {13, 32}


@pytest.mark.parametrize("moment", ["startup", "shutdown"])
def test_an_error_of_the_lifespan_arrives_once_and_systemd_starts_again(site: Site, release: str, moment: str) -> None:
    before = known(site)
    site.run(f"touch /var/lib/booty/{moment} && chmod 0666 /var/lib/booty/{moment}")
    site.host.ssh("systemctl restart booty.service")
    site.wait_for("systemctl is-active booty.service")
    assert site.health()["release"] == release
    events = received(site, before, 1)
    assert summary(events) == [("Planned", moment, moment)]
    assert {(event["release"], event["environment"]) for event in events} == {(release, "staging")}
    assert site.run(f"ls /var/lib/booty/{moment} 2>/dev/null || true") == ""


def test_ten_errors_and_sigterm_in_the_same_instant(site: Site, release: str) -> None:
    before, pid = known(site), site.pid()
    clients = [threading.Thread(target=ask, args=(site, f"/ten/{number}")) for number in range(10)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    events = received(site, before, 10)
    assert summary(events) == sorted(("Planned", f"ten {number}", "/ten/{number}") for number in range(10))
    assert {(event["release"], event["environment"]) for event in events} == {(release, "staging")}
    assert site.health()["release"] == release
    assert site.pid() != pid


def test_a_secret_shows_neither_in_an_event_nor_in_the_journal(site: Site, release: str) -> None:
    secrets = site.run("cat /etc/booty/secrets.env")
    site.place_secrets(f"{secrets}\nPLANTED={PLANTED}\nDATABASE_URL=postgres://shop:pw-of-db@db.example/shop\n")
    try:
        site.run("systemctl restart booty.service")
        before = known(site)
        headers = {"Authorization": PLANTED, "Cookie": f"a={PLANTED}", "X-Odd": PLANTED}
        assert ask(site, f"/leak?q={PLANTED}", **headers) == 500
        events = received(site, before, 2)
        assert {event["transaction"] for event in events} == {"/leak"}
        assert len(events) == 2
        journal = site.run("journalctl --unit=booty.service --output=cat --no-pager --all")
        assert "can't use [Filtered]" in journal
        for text in (str(events), journal):
            assert "no database at [Filtered] with [Filtered], and [Filtered]" in text
            for secret in (
                PLANTED,
                "pw-of-db",
                site.tracker.dsn,
                site.tracker.dsn.partition("//")[2].partition("@")[0],
            ):
                assert secret not in text
    finally:
        site.place_secrets(f"{secrets}\n")
        site.run("systemctl restart booty.service")


def test_the_candidate_s_gate_is_one_event_of_its_release(site: Site) -> None:
    before, sha = known(site), site.release()
    site.deploy(app_telemetry_gate="true")
    (event,) = received(site, before, 1)
    assert event["message"] == "Booty release is being proven"
    assert (event["release"], event["environment"], event["level"]) == (sha, "staging", "info")
    site.release()  # not to be deployed again by a test that expects one event
