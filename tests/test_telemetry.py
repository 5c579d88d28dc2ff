"""Errors of the real service in a real tracker: each arrives once, with the right labels and without secrets."""

from __future__ import annotations

import http.client
import http.server
import json
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from sandbox import hosts
from tests.conftest import Play, Site

PLANTED = "hunter2-planted-secret"
OF_CLIENT = "hunter3-of-a-client"

ROUTES = '''
import asyncio
import logging
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pydantic
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import StreamingResponse


STATE = Path(os.environ["STATE_DIRECTORY"])


class Planned(RuntimeError):
    pass


def once(moment: str) -> None:
    """Fail if a file has this name, and remove the file, so that the next start succeeds."""
    with suppress(FileNotFoundError):
        STATE.joinpath(moment).unlink()
        raise Planned(moment)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    once("startup")
    yield
    once("shutdown")


router = APIRouter(lifespan=lifespan)


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


@router.get("/large")
async def large() -> None:
    raise Planned(f"begin {'x' * 2_000_000} end")


@router.get("/ten/{number}")
async def ten(number: int) -> None:
    STATE.joinpath(f"ten-{number}").touch()
    while len(list(STATE.glob("ten-*"))) < 10:  # in all processes together
        await asyncio.sleep(0.001)
    if number == 0:
        os.kill(int(os.environ["SYSTEMD_EXEC_PID"]), signal.SIGTERM)  # of the main process
    raise Planned(f"ten {number}")


@router.get("/blocked")
def blocked(seconds: float) -> None:
    time.sleep(seconds)  # in a thread, which can't be cancelled


async def read(request: Request) -> bytes:
    return await request.body()


@router.post("/leak/{part}")
def leak(request: Request, part: str, body: bytes = Depends(read)) -> None:
    """Put secrets into all data that an event or a log line has. They come from the request and from variables."""
    secret, log = os.environ["PLANTED"], logging.getLogger("shop")
    log.info("using %s", secret)
    log.error("can't use %s", secret, extra={"other": secret})
    subprocess.run(["true", secret], check=True)
    with suppress(urllib.error.HTTPError):
        urllib.request.urlopen(f"http://127.0.0.1:8000/{secret}?token={secret}")
    try:
        pydantic.TypeAdapter(int).validate_python({"part": part})
    except ValueError:
        log.exception("a library says")
    log.error("%r has %r", request.state.settings, dict(os.environ))
    raise Planned(f"no database at {os.environ['DATABASE_URL']} with pw-of-db, and {secret}")
'''


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.long)], ids=["1-worker", "2-workers"])
def release(site: Site, request: pytest.FixtureRequest) -> Iterator[str]:
    """Deploy an app that fails on request, with one worker or several, and return its SHA."""
    site.variables["app_workers"] = str(request.param)
    main = (site.repository.path / "app/src/booty/main.py").read_text()
    hook = "    app.include_router(routes.router)\n"
    assert hook in main
    site.repository.write(
        "app/src/booty/main.py", main.replace(hook, f'{hook}    app.middleware("http")(routes.middleware)\n')
    )
    try:
        sha = site.release(text=f"{ROUTES}# {request.param}\n")
        site.deploy()
    finally:
        site.repository.write("app/src/booty/main.py", main)
    yield sha
    del site.variables["app_workers"]


def ask(site: Site, path: str, body: str | None = None, **headers: str) -> int:
    """Send a request and return the status of the answer, also if its body is incomplete."""
    with closing(http.client.HTTPConnection(site.host.address, 8000, timeout=20)) as connection:
        connection.request("POST" if body else "GET", path, body, {"Connection": "close", **headers})
        with connection.getresponse() as answer:
            with suppress(http.client.IncompleteRead):
                answer.read()
            return answer.status


def received(site: Site, known: set[str], count: int) -> list[dict[str, Any]]:
    """Wait for `count` new events, and one more second in case that there are more; return all of them."""
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


def test_an_error_of_2_mb_arrives_shortened(site: Site, release: str) -> None:
    before = known(site)
    assert ask(site, "/large") == 500
    (event,) = received(site, before, 1)
    error = event["exception"]["values"][-1]
    assert (error["type"], event["release"], event["transaction"]) == ("Planned", release, "/large")
    assert error["value"].startswith("begin xxx")
    assert error["value"].endswith("xxx end")
    assert error["stacktrace"]["frames"][-1]["function"] == "large"
    assert len(json.dumps(event)) < 200_000
    assert event["extra"]["shortened"].startswith("from 2,0")


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
    site.run("rm -f /var/lib/booty/ten-*")
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


def processes(site: Site) -> list[str]:
    """Return the PIDs of the service: the main process, then its workers if it has several."""
    main = site.pid()
    return [main, *site.run(f"cat /proc/{main}/task/{main}/children").split()]


def check_labels(site: Site, sha: str) -> None:
    """Check the labels in the environment of each process and in the events of all of them."""
    workers = int(site.variables["app_workers"])
    pids = processes(site)
    assert len(pids) == (1 if workers == 1 else 1 + workers)
    for pid in pids:
        environ = site.run(f"tr '\\0' '\\n' < /proc/{pid}/environ").splitlines()
        labels = {f"SENTRY_RELEASE={sha}", "SENTRY_ENVIRONMENT=staging", f"BOOTY_RELEASE_DIR=/opt/booty/releases/{sha}"}
        assert labels <= set(environ)
    before = known(site)
    for number in range(8):
        assert ask(site, f"/async/{number}") == 500
    events = received(site, before, 8)
    assert summary(events) == [("Planned", "async", "/async/{number}")] * 8
    assert {(event["release"], event["environment"]) for event in events} == {(sha, "staging")}


@pytest.mark.long
def test_labels_are_right_after_a_deploy_a_rollback_a_kill_and_a_reboot(site: Site, release: str) -> None:
    newer = site.release("newer.py", "# newer\n")
    site.deploy()
    check_labels(site, newer)
    played = site.play("rollback.yml")
    assert played.status == 0, played.output
    check_labels(site, release)
    *_, victim = processes(site)
    site.run(f"kill -KILL {victim}")
    site.wait_for(f"! test -d /proc/{victim} && systemctl is-active booty.service")
    assert site.health()["release"] == release  # the socket queues the request until the service is ready
    assert victim not in processes(site)
    check_labels(site, release)
    hosts.reboot(site.host.instance, site.host.name)
    check_labels(site, release)


def test_a_secret_is_neither_in_an_event_nor_in_the_journal(site: Site, release: str) -> None:
    secrets = site.run("cat /etc/booty/secrets.env")
    site.place_secrets(f"{secrets}\nPLANTED={PLANTED}\nDATABASE_URL=postgres://shop:pw-of-db@db.example/shop\n")
    try:
        site.run("systemctl restart booty.service")
        before = known(site)
        for planted in (PLANTED, OF_CLIENT):
            headers = {"Authorization": f"Bearer {planted}", "Cookie": f"a={planted}", "X-Odd": planted}
            for kind, body in (
                ("application/json", f'{{"a": [{{"b": "{planted}"}}]}}'),
                ("application/x-www-form-urlencoded", f"a={planted}"),
            ):
                assert ask(site, f"/leak/{planted}?q={planted}", body, **headers, **{"Content-Type": kind}) == 500
        events = received(site, before, 16)
        assert {event["transaction"] for event in events} == {"/leak/{part}"}
        assert len(events) == 16
        crumbs = [crumb for event in events for crumb in event["breadcrumbs"]["values"]]
        assert {"shop", "httplib"} <= {crumb["category"] for crumb in crumbs}
        journal = site.run("journalctl --unit=booty.service --output=cat --no-pager --all")
        assert "can't use [Filtered]" in journal
        for text in (str(events), journal):
            assert "no database at [Filtered] with [Filtered], and [Filtered]" in text
            for secret in (
                PLANTED,
                OF_CLIENT,
                "pw-of-db",
                site.tracker.dsn,
                site.tracker.dsn.partition("//")[2].partition("@")[0],
            ):
                assert secret not in text
    finally:
        site.place_secrets(f"{secrets}\n")
        site.run("systemctl restart booty.service")


def test_the_candidate_s_gate_is_one_event_of_its_release(site: Site, release: str) -> None:
    before, sha = known(site), site.release()
    site.deploy(app_telemetry_gate="true")
    (event,) = received(site, before, 1)
    assert event["message"] == "Booty release is being proven"
    assert (event["release"], event["environment"], event["level"]) == (sha, "staging", "info")
    site.release()  # so that a test that expects one event does not deploy this release again


# --- a tracker with a private CA, behind a proxy --------------------------------------------------------


class Passing(socketserver.StreamRequestHandler):
    """Forwards all bytes, in both directions, between a client and the address of `destination`."""

    def destination(self) -> tuple[str, int]:
        """Return the address to connect to, by default the `target` of the server."""
        return self.server.target  # type: ignore[attr-defined, no-any-return]

    def handle(self) -> None:
        with socket.create_connection(self.destination(), timeout=20) as upstream:
            thread = threading.Thread(target=self._pass, args=(upstream, self.connection))
            thread.start()
            self._pass(self.connection, upstream)
            thread.join()

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


class Tunnel(Passing):
    """An HTTP proxy that answers CONNECT."""

    def destination(self) -> tuple[str, int]:
        host, port = self.rfile.readline().split()[1].decode().split(":")
        while self.rfile.readline().strip():
            pass
        self.server.asked.append(f"{host}:{port}")  # type: ignore[attr-defined]
        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        return host, int(port)


@contextmanager
def passing(address: str, handler: type[Passing], target: tuple[str, int] | None = None) -> Iterator[Any]:
    """Run a server with the handler on an address of this machine that hosts reach."""
    with socketserver.ThreadingTCPServer((address, 0), handler, bind_and_activate=True) as server:
        server.daemon_threads, server.block_on_close = True, False
        server.target, server.asked = target, []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.long
def test_a_tracker_with_a_private_ca_behind_a_proxy(site: Site, release: str, tmp_path: Path) -> None:
    parts = urlsplit(site.tracker.dsn)
    assert parts.hostname
    assert parts.port
    site.run(
        "cd /root && new='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'; exec 2>/dev/null &&"
        " openssl req -x509 $new -subj /CN=CA -addext keyUsage=critical,keyCertSign -keyout ca.key -out ca.pem &&"
        f" openssl req $new -subj /CN=t -addext subjectAltName=IP:{parts.hostname} -keyout tls.key -out tls.csr &&"
        " openssl x509 -req -in tls.csr -CA ca.pem -CAkey ca.key -days 2 -copy_extensions copy -out tls.pem"
    )
    (tmp_path / "tls.pem").write_text(site.run("cat /root/tls.key /root/tls.pem") + "\n")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.pem")
    trusted = "/usr/local/share/ca-certificates/own.crt"

    def gate(secrets: str) -> Play:
        site.place_secrets(f"SENTRY_DSN={dsn}\n{secrets}")
        return site.play("deploy.yml", app_restart="true", app_telemetry_gate="true", app_release=release)

    front = passing(parts.hostname, Passing, (parts.hostname, parts.port))
    with front as tls, passing(parts.hostname, Tunnel) as proxy:
        tls.socket = context.wrap_socket(tls.socket, server_side=True)
        dsn = f"https://{parts.username}@{parts.hostname}:{tls.server_address[1]}{parts.path}"
        by_proxy = f"HTTPS_PROXY=http://{parts.hostname}:{proxy.server_address[1]}\n"
        try:
            refused = gate("")
            assert refused.status != 0
            assert (
                "its certificate is not accepted: unable to get local issuer certificate; add its CA to the host's"
                " (update-ca-certificates), or set SSL_CERT_FILE to a file that has it"
            ) in " ".join(refused.output.split())
            before = known(site)
            site.run("cp /root/ca.pem /etc/booty/ca.pem && chmod 0644 /etc/booty/ca.pem")
            played = gate("SSL_CERT_FILE=/etc/booty/ca.pem\n")
            assert played.status == 0, played.output
            site.run(f"rm /etc/booty/ca.pem; cp /root/ca.pem {trusted} && update-ca-certificates")
            played = gate(by_proxy)
            assert played.status == 0, played.output
            assert proxy.asked
            assert set(proxy.asked) == {f"{parts.hostname}:{tls.server_address[1]}"}
            assert ask(site, "/async/1") == 500
            assert len(received(site, before, 3)) == 3
            refused = gate("HTTPS_PROXY=http://127.0.0.1:9\n")
            assert refused.status != 0
            assert "(by the proxy 127.0.0.1:9 of HTTPS_PROXY) is not reached: Connection refused" in " ".join(
                refused.output.split()
            )
        finally:
            site.run(f"rm -f {trusted} /etc/booty/ca.pem /root/ca.* /root/tls.*; update-ca-certificates --fresh")
            site.place_secrets(f"SENTRY_DSN={site.tracker.dsn}\n")
            site.deploy(app_restart="true", app_release=release)


# --- a tracker that does not work -----------------------------------------------------------------------

DRAIN = 3
# Each kind of bad tracker, and the outcomes of the last event that the service may report by then.
OUTCOMES: dict[str, list[str | int | None]] = {
    "refused": ["Connection refused"],
    "hanging": [None],
    "black hole": [None],
    "slow": [None, 200],
}


@pytest.fixture(scope="module")
def short_drain(site: Site, release: str) -> Iterator[None]:
    """Deploy the app again, with a drain of three seconds."""
    site.variables["app_drain_seconds"] = str(DRAIN)
    site.deploy(app_release=release)
    yield
    del site.variables["app_drain_seconds"]


class Slow(http.server.BaseHTTPRequestHandler):
    """Accepts each event after `seconds`."""

    protocol_version = "HTTP/1.1"
    seconds = 1.0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        time.sleep(self.seconds)
        with suppress(OSError):  # the client has closed the connection
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        pass


class Hanging(Slow):
    """Accepts the connection and the event, and answers later than the service may take to stop."""

    seconds = 30.0


@contextmanager
def bad_tracker(site: Site, kind: str) -> Iterator[str]:
    """Run a tracker that is bad in one way, beside the good one, and yield its DSN."""
    address = urlsplit(site.tracker.url).hostname
    assert address
    with http.server.ThreadingHTTPServer((address, 0), Hanging if kind == "hanging" else Slow) as server:
        server.daemon_threads = True
        server.block_on_close = False
        dsn = f"http://0123456789abcdef@{address}:{server.server_port}/1"
        if kind in {"hanging", "slow"}:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield dsn
            server.shutdown()
            return
    if kind == "refused":
        yield dsn
        return
    # The host drops all packets from the tracker: the service sends, and gets not even a refusal.
    rule = f"ip saddr {address} tcp sport {server.server_port} drop"
    site.run(
        f"nft 'add table inet hole; add chain inet hole in {{ type filter hook input priority -1; }}; "
        f"add rule inet hole in {rule}'"
    )
    try:
        yield dsn
    finally:
        site.run("nft delete table inet hole")


def restart(site: Site) -> None:
    # systemd allows five starts of a unit in 10 s. If the tracker refuses at once, the test restarts more often.
    site.run("systemctl reset-failed booty.service; systemctl restart booty.service")


def stop(site: Site) -> tuple[float, list[str]]:
    """Stop the service as an operator does; return the seconds until the unit is inactive, and how it ended."""
    took, *properties = site.run(
        "began=$(date +%s%N); systemctl stop booty.service; echo $(( ($(date +%s%N) - began) / 1000000 ));"
        " systemctl show booty.service --property=ActiveState,Result,ExecMainStatus"
    ).splitlines()
    return int(took) / 1000, sorted(properties)


def telemetry(site: Site) -> dict[str, Any]:
    """Return the telemetry state of one process, from the internal socket."""
    program = r"""python3 - <<'END'
import http.client, socket
with socket.socket(socket.AF_UNIX) as internal:
    internal.connect("/run/booty/internal.sock")
    internal.sendall(b"GET /status HTTP/1.0\r\n\r\n")
    answer = http.client.HTTPResponse(internal)
    answer.begin()
    print(answer.read().decode())
END"""
    state: dict[str, Any] = json.loads(site.run(program))["telemetry"]
    return state


def health_until_the_end(kept: http.client.HTTPConnection) -> None:
    """Request /health on an open connection, until an answer of the draining service has `Connection: close`."""
    while True:
        kept.request("GET", "/health")
        with kept.getresponse() as answer:
            answer.read()
            assert answer.status == 200
            if answer.headers["connection"] == "close":
                return
        time.sleep(0.05)


def ask_for_too_long(site: Site) -> None:
    """Send a request that takes longer than the drain. Other tests check how it ends."""
    with suppress(OSError, http.client.HTTPException):
        ask(site, "/blocked?seconds=60")


@pytest.mark.long
@pytest.mark.parametrize("kind", OUTCOMES)
def test_a_bad_tracker_holds_up_neither_health_nor_the_stop_of_the_unit(
    site: Site, release: str, short_drain: None, kind: str
) -> None:
    with bad_tracker(site, kind) as dsn, ThreadPoolExecutor(2) as pool:
        site.place_secrets(f"SENTRY_DSN={dsn}\n")
        try:
            for held in (False, True):
                restart(site)
                for number in range(20):
                    assert ask(site, f"/async/{number}") == 500
                    assert ask(site, "/health") == 200
                # A slow tracker has answered few events by now, so the service stops with events in its queue.
                assert telemetry(site)["status"] in OUTCOMES[kind]
                with closing(http.client.HTTPConnection(site.host.address, 8000, timeout=20)) as kept:
                    kept.connect()
                    if held:
                        pool.submit(ask_for_too_long, site)
                        time.sleep(0.5)
                    stopping = pool.submit(stop, site)
                    health_until_the_end(kept)
                took, properties = stopping.result()
                print(f"{kind}, {'with' if held else 'without'} a request: {took:.2f} s")
                assert properties == ["ActiveState=inactive", "ExecMainStatus=0", "Result=success"]
                assert (DRAIN if held else 0) < took <= DRAIN + 2
        finally:
            site.place_secrets(f"SENTRY_DSN={site.tracker.dsn}\n")
            restart(site)
