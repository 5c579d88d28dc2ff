"""The service as a process: its sockets, its readiness, its refusals and its stop."""

import asyncio
import http.client
import json
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import booty
import pytest
from booty.main import create_app
from runner.tests.clients import Connection, Load, ask
from runner.tests.conftest import SRC

from booty_runner import __version__
from booty_runner._vendor import uvloop
from booty_runner.identity import Identity
from booty_runner.protocol_config import Config
from booty_runner.server import Server
from booty_runner.settings import Settings

CODE = Path(booty.__file__).parent
APP = "booty.main:create_app()"


def run(*args, **env):
    return subprocess.run(
        [sys.executable, "-m", "booty_runner", *args],
        env={"PYTHONPATH": SRC, **env},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


# --- the command line -----------------------------------------------------------------------------------


def test_version_and_help_need_no_settings():
    assert run("--version", SENTRY_DSN="bad").stdout == f"booty_runner {__version__}\n"
    assert "SENTRY_DSN" in run("--help", SENTRY_DSN="bad").stdout


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"SENTRY_ENVIRONMENT": "production"},
            "SENTRY_DSN is not set, and production does not run without it",
        ),
        ({"SENTRY_SAMPLE_RATE": "2"}, "SENTRY_SAMPLE_RATE must be the share of errors to send, from 0 to 1"),
        ({"BOOTY_RELEASE_DIR": str(CODE), "SENTRY_RELEASE": "other"}, "named booty, SENTRY_RELEASE is other"),
    ],
)
def test_refusal_is_one_line_and_status_1(settings, line):
    result = run(APP, "--port=0", **settings)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert line in result.stderr


def test_unhealthy_from_the_start_is_never_ready():
    result = run(APP, "--port=0", STATE_DIRECTORY="/nowhere", BOOTY_HEALTH_PATH="/health")
    assert result.returncode == 1
    line = result.stderr.splitlines()[-1]
    assert "refusing to serve: GET /health with Host localhost answers 503 Service Unavailable (" in line
    assert "/nowhere is not writable: No such file or directory" in line
    assert "serving release" not in result.stderr


def test_port_that_is_taken(tcp):
    port = tcp.getsockname()[1]
    result = run(APP, f"--port={port}")
    assert result.returncode == 1
    assert result.stderr.endswith(f"cannot listen on 127.0.0.1:{port}: Address already in use\n")
    assert len(result.stderr.splitlines()) == 1


def test_own_sockets(start, tmp_path):
    path = tmp_path / "i.sock"
    with socket.socket(socket.AF_UNIX) as left_by_a_run_that_was_killed:
        left_by_a_run_that_was_killed.bind(str(path))
    service = start(args=["--port=0", f"--internal-socket={path}"]).ready()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    service.stop()
    status, stderr = service.wait()
    assert status == 0
    assert re.search(r"serving release \(unknown\) on 127\.0\.0\.1:\d+, ", stderr)


# --- the two sockets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["auto", "", "0", "3"])
def test_variables_of_uvicorn_s_own_command_have_no_effect(start, tcp, value):
    names = ("WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "UVICORN_WORKERS", "UVICORN_PORT", "UVICORN_ROOT_PATH")
    service = start(sockets=[tcp], **dict.fromkeys(names, value)).ready()
    assert ask(tcp, "/health")[0] == 200
    assert service.children() == []
    service.stop()
    assert service.wait()[0] == 0


def test_health_and_greeting_on_the_tcp_socket(start, tcp):
    start(sockets=[tcp], SENTRY_RELEASE="abc", SENTRY_ENVIRONMENT="staging").ready()
    status, headers, body = ask(tcp, "/health")
    assert (status, json.loads(body)) == (200, {"status": "ok", "release": "abc", "environment": "staging"})
    assert "server" not in headers
    with Connection(tcp) as connection:
        connection.send("/health", "HEAD", connection="close")
        head, end, more = connection.sock.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert (end, more) == (b"\r\n\r\n", b"")
    assert json.loads(ask(tcp, "/")[2])["release"] == "abc"


@pytest.mark.parametrize("order", [0, 1])
def test_internal_app_is_on_the_unix_socket_only(start, tcp, unix, order):
    service = start(sockets=[tcp, unix][:: -1 if order else 1], SENTRY_RELEASE="abc").ready()
    assert json.loads(ask(unix, "/status")[2]) == {
        "release": "abc",
        "environment": "development",
        "pid": service.process.pid,
        "telemetry": None,
        "requests": 0,
        "lost": 0,
        "jobs": {"error": "there is no job queue: neither STATE_DIRECTORY nor BOOTY_QUEUE_URL is set"},
    }
    assert ask(unix, "/raise", "POST")[0] == 500
    assert ask(unix, "/openapi.json")[0] == 404
    forged = {"host": "/run/booty/internal.sock", "x-forwarded-for": "unix:", "forwarded": "for=unix"}
    for target in ("/raise", "//raise", "http://localhost/raise", "/%72aise"):
        assert ask(tcp, target, "POST", **forged)[0] == 404
    assert ask(tcp, "/status", **forged)[0] == 404


def test_after_an_error_the_connection_serves_on(start, tcp, tracker):
    """The server alone, uvicorn, closes it without `Connection: close`, and a request that is on its way is lost."""
    service = start(sockets=[tcp], SENTRY_DSN=tracker.dsn).ready()
    with Connection(tcp) as connection:
        for path, expected in (("/fail/1", 500), ("/fail-behind", 200), ("/unavailable", 503)) * 2:
            status, headers, _ = connection.ask(path)
            assert (status, headers["connection"]) == (expected, None)
            assert connection.ask("/")[0] == 200
        # The next request has arrived before the error happens.
        for path in ("/fail/2", "/"):
            connection.send(path)
        assert [connection.receive()[0] for _ in range(2)] == [500, 200]
    service.stop()
    assert service.wait()[1].count("ERROR   uvicorn.error: Exception in ASGI application") == 5
    assert len(tracker.events) == 7


def test_an_answer_that_breaks_off_ends_the_connection(start, tcp):
    start(sockets=[tcp]).ready()
    with Connection(tcp) as connection:
        connection.send("/fail-within")
        with pytest.raises(http.client.IncompleteRead):
            connection.receive()
        assert connection.ended()


def test_sockets_meant_for_another_process_are_left_alone(tcp):
    port = tcp.getsockname()[1]
    result = run(APP, f"--port={port}", LISTEN_PID="1", LISTEN_FDS="1")
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr


def test_footprint(start, tcp):
    """docs/promises.md names 75 MB. Readiness within 0.7 s is measured on a host, where nothing else runs."""
    service = start(sockets=[tcp]).ready()
    assert ask(tcp, "/")[0] == 200
    memory = Path(f"/proc/{service.process.pid}/status").read_text()
    assert int(re.search(r"VmRSS:\s+(\d+) kB", memory)[1]) < 75_000


# --- telemetry ------------------------------------------------------------------------------------------


def test_errors_arrive_once_also_those_queued_at_sigterm(start, tcp, unix, tracker):
    service = start(sockets=[tcp, unix], SENTRY_DSN=tracker.dsn, SENTRY_RELEASE="abc").ready()
    assert ask(tcp, "/unavailable")[0] == 503
    assert ask(unix, "/raise", "POST")[0] == 500
    for number in range(10):
        assert ask(tcp, f"/fail/{number}")[0] == 500
    service.stop()
    assert service.wait()[0] == 0
    seen = [(event["transaction"], event["exception"]["values"][-1]["type"]) for event in tracker.events]
    assert sorted(seen) == [
        *[("/fail/{reason}", "LookupError")] * 10,
        ("/raise", "DeliberateError"),
        ("/unavailable", "HTTPException"),
    ]
    assert {event["release"] for event in tracker.events} == {"abc"}


@pytest.mark.parametrize("moment", ["startup", "shutdown"])
def test_lifespan_that_fails_is_reported_once_and_ends_with_status_3(start, tcp, tracker, moment):
    service = start(sockets=[tcp], SENTRY_DSN=tracker.dsn, TEST_BROKEN=moment)
    if moment == "shutdown":
        service.ready().stop()
    status, stderr = service.wait()
    assert status == 3
    assert "ERROR   booty: the service failed\nTraceback" in stderr
    (event,) = tracker.events
    assert event["exception"]["values"][-1]["type"] == "ConnectionError"
    assert event["transaction"] == moment


def test_code_that_does_not_import_ends_with_status_3(tmp_path):
    (tmp_path / "starlette.py").write_text("import no_such_module\n")
    result = run(APP, "--port=0", PYTHONPATH=f"{tmp_path}:{SRC}")
    assert result.returncode == 3
    assert "ERROR   booty: the service failed\nTraceback" in result.stderr
    assert "No module named 'no_such_module'" in result.stderr


# --- the stop -------------------------------------------------------------------------------------------


def test_nobody_connected_stops_at_once_and_leaves_the_sockets(start, tcp, unix):
    service = start(sockets=[tcp, unix]).ready()
    began = time.monotonic()
    service.stop()
    status, stderr = service.wait()
    assert time.monotonic() - began < 0.5
    assert status == 0
    assert "Traceback" not in stderr
    start(sockets=[tcp, unix]).ready()
    assert ask(unix, "/status")[0] == 200


def test_request_in_flight_finishes(start, tcp, unix):
    service = start(sockets=[tcp, unix]).ready()
    with Connection(tcp) as connection:
        connection.send("/slow?seconds=1")
        time.sleep(0.2)
        service.stop()
        status, headers, body = connection.receive()
        assert (status, headers["connection"], body) == (200, "close", b'"done"')
        assert connection.ended()
    assert service.wait()[0] == 0


def test_open_connections_get_one_more_answer(start, tcp, unix):
    service = start(sockets=[tcp, unix]).ready()
    with (
        Connection(tcp) as used,
        Connection(unix) as internal,
        Connection(tcp) as fresh,
        Connection(tcp) as half,
    ):
        assert used.ask("/")[1]["connection"] is None
        assert internal.ask("/status")[0] == 200
        half.sock.sendall(b"GET / HTTP/1.1\r\nho")
        time.sleep(0.1)
        service.stop()
        time.sleep(0.2)
        half.sock.sendall(b"st: test\r\n\r\n")
        for connection in (used, fresh):
            connection.send("/")
        internal.send("/status")
        for connection in (used, fresh, half, internal):
            status, headers, _ = connection.receive()
            assert (status, headers["connection"]) == (200, "close")
            assert connection.ended()
    assert service.wait()[0] == 0


def test_idle_connections_are_let_go_after_their_bound(start, tcp):
    service = start(sockets=[tcp], BOOTY_IDLE_SECONDS="0.4").ready()
    with Connection(tcp) as used, Connection(tcp) as fresh:
        assert used.ask("/")[0] == 200
        began = time.monotonic()
        service.stop()
        assert used.ended()
        assert fresh.ended()
        assert 0.35 < time.monotonic() - began < 0.9
    assert service.wait()[0] == 0


def test_a_head_that_begins_within_the_bound_has_the_bound_anew(start, tcp):
    service = start(sockets=[tcp], BOOTY_IDLE_SECONDS="0.6").ready()
    with Connection(tcp) as connection:
        assert connection.ask("/")[0] == 200
        service.stop()
        time.sleep(0.4)
        connection.sock.sendall(b"GET / HTTP/1.1\r\nho")
        time.sleep(0.4)
        connection.sock.sendall(b"st: test\r\n\r\n")
        assert connection.receive()[0] == 200
    assert service.wait()[0] == 0


def test_request_that_waits_in_the_kernel_is_not_idle(tcp):
    async def look_before_and_after():
        server = Server(Settings(), Identity.of_this_process(Settings()))
        config = Config(loaded_app=create_app(Settings()), timeout_keep_alive=75)
        await server._listen(tcp, config, {})
        with Connection(tcp) as client:
            while not server._state.connections:
                await asyncio.sleep(0.01)
            (connection,) = server._state.connections
            before = connection.busy
            client.sock.sendall(b"G")  # the event loop does not run between these lines
            after = connection.busy
        server._cut.set()
        await server._drain()
        return before, after

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(look_before_and_after()) == (False, True)


def test_connection_accepted_in_the_instant_of_the_stop_is_answered(start, tcp):
    """Suspend the process, connect and send, and continue it with a pending SIGTERM."""
    service = start(sockets=[tcp], BOOTY_IDLE_SECONDS="0").ready()
    with Connection(tcp) as known, Connection(tcp) as new:
        assert known.ask("/")[0] == 200
        service.process.send_signal(signal.SIGSTOP)
        service.process.send_signal(signal.SIGTERM)
        known.send("/")
        new.send("/")
        service.process.send_signal(signal.SIGCONT)
        assert known.receive()[0] == 200
        # A connection that is not accepted is fine too: it waits on the socket for the next process.
        start(sockets=[tcp]).ready()
        assert new.receive()[0] == 200
    assert service.wait()[0] == 0


@pytest.mark.parametrize("path", ["/slow?seconds=30", "/blocked?seconds=30"])
def test_request_beyond_the_bound_is_cut_there_and_reported(start, tcp, tracker, path):
    service = start(sockets=[tcp], BOOTY_DRAIN_SECONDS="0.5", SENTRY_DSN=tracker.dsn).ready()
    with Connection(tcp) as connection:
        connection.send(path)
        time.sleep(0.2)
        began = time.monotonic()
        service.stop()
        assert connection.receive()[0] == 500
        status, stderr = service.wait()
    assert 0.4 < time.monotonic() - began < 2
    assert status == 0
    assert "cutting 1 requests, 1 connections after 0.5 s" in stderr
    (event,) = tracker.events
    assert event["exception"]["values"][-1]["type"] == "CancelledError"
    assert event["transaction"] == path.partition("?")[0]


def test_second_signal_cuts(start, tcp):
    service = start(sockets=[tcp]).ready()
    with Connection(tcp) as connection:
        connection.send("/slow?seconds=30")
        time.sleep(0.2)
        service.stop(signal.SIGINT)
        service.process.send_signal(signal.SIGINT)
        assert service.wait(3)[0] == 0


def test_handing_over_under_load_loses_nothing(start, tcp, unix):
    """Three times, as in a deploy: start a second process on the same sockets, then stop the first one."""
    serving = start(sockets=[tcp, unix]).ready()
    with Load(tcp, keep_alive=10, fresh=6, slow=4) as load:
        for _ in range(3):
            successor = start(sockets=[tcp, unix]).ready()
            time.sleep(0.3)
            serving.stop()
            status, stderr = serving.wait()
            assert status == 0
            assert "cutting" not in stderr
            serving = successor
    assert load.failures == []
    assert load.answers > 200


def test_the_watchdog_is_off_unless_it_is_asked_for(start, tcp):
    service = start(sockets=[tcp]).ready()
    assert ask(tcp, "/hang?seconds=1.5")[0] == 200
    service.stop()
    assert service.wait()[0] == 0
    service.notifications.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        service.notifications.expect("WATCHDOG=1")


def test_the_event_loop_pings_until_the_end_of_a_long_drain(start, tcp):
    service = start(sockets=[tcp], BOOTY_WATCHDOG_SECONDS="0.4").ready()
    service.notifications.expect("WATCHDOG_USEC=400000")
    with Connection(tcp) as connection:
        connection.send("/slow?seconds=3")
        time.sleep(0.2)
        service.stop()
        for _ in range(5):
            service.notifications.expect("WATCHDOG=1")
        assert connection.receive()[0] == 200
    assert service.wait()[0] == 0


@pytest.mark.parametrize("stops", [False, True])
def test_an_event_loop_that_hangs_ends_the_process(start, tcp, stops):
    """The ping stops. systemd notices that unless the service is stopping: then the process ends itself."""
    service = start(sockets=[tcp], BOOTY_WATCHDOG_SECONDS="0.5").ready()
    with Connection(tcp) as connection:
        connection.send("/slow?seconds=20")
        time.sleep(0.2)
        with Connection(tcp) as hung:
            if stops:
                hung.ask("/")
                service.stop()
            hung.send("/hang?seconds=20")
            status, stderr = service.wait(5)
    assert status == -signal.SIGALRM
    assert "in hang" in stderr


# --- pause, and the candidate that becomes the service ----------------------------------------------------------


@pytest.mark.parametrize("workers", ["1", "3"])
def test_pause_leaves_new_connections_to_another_process_and_keeps_its_own(start, tcp, unix, workers):
    old = start(sockets=[tcp, unix], BOOTY_WORKERS=workers, SENTRY_RELEASE="old").ready()
    new = start(sockets=[tcp, unix], BOOTY_WORKERS=workers, SENTRY_RELEASE="new", BOOTY_CANDIDATE="true").ready()
    with Load(tcp, 4, 2, 2) as load:
        for _ in range(3):
            old.process.send_signal(signal.SIGUSR1)
            old.notifications.expect("STATUS=paused")
            assert {json.loads(ask(tcp, "/health")[2])["release"] for _ in range(20)} == {"new"}
            old.process.send_signal(signal.SIGUSR2)
            old.notifications.expect("STATUS=serving" if workers == "1" else "STATUS=serving with 3 workers")
            wait_for_release(tcp, "old")
    assert load.failures == []
    for service in (new, old):
        service.process.send_signal(signal.SIGUSR1)  # a paused process drains too
        service.notifications.expect("STATUS=paused")
        service.stop()
        assert service.wait()[0] == 0


def wait_for_release(tcp, release):
    deadline = time.monotonic() + 10
    while json.loads(ask(tcp, "/health")[2])["release"] != release:
        assert time.monotonic() < deadline
