"""Fixtures for the tests of the runner and the app: a recording tracker, and the service as a process."""

import gzip
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path

import pytest
from booty.config import Settings
from sentry_sdk.envelope import Envelope

from booty_runner.settings import ACCEPTED, current, labels

ROOT = Path(__file__).parents[2]
SRC = f"{ROOT / 'runner/src'}:{ROOT / 'app/src'}"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """Remove settings of the environment in which pytest runs."""
    systemd = ["LISTEN_PID", "LISTEN_FDS", "NOTIFY_SOCKET", "JOURNAL_STREAM"]
    for name in [*ACCEPTED, *map(str.upper, Settings.model_fields), *systemd]:
        monkeypatch.delenv(name, raising=False)
    current.cache_clear()
    labels.cache_clear()


class Tracker:
    """Records what the SDK sends: a stand-in for the protocol; the end-to-end tests use a real tracker."""

    def __init__(self):
        self.events = []
        self.items = []  # the items of all envelopes, events included
        self.requests = []
        self.status = 200  # the status of an answer to an event
        self.headers = {}  # more headers of such an answer
        self.seconds = 0  # the time until an answer
        self.limit = 2**20  # largest event in bytes, as in Bugsink and Sentry; a larger one gets 413
        self.clock = 0  # seconds by which its clock is ahead
        self.ready = threading.Event()  # while it is cleared, the tracker hangs
        self.ready.set()
        tracker = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                status = tracker.status
                if self.headers["content-encoding"] == "gzip":
                    body = gzip.decompress(body)
                if re.fullmatch(r"/api/\d+/store/", self.path):  # the endpoint of SDKs before 2.0
                    tracker.events.append(json.loads(body))
                if re.fullmatch(r"/api/\d+/envelope/", self.path):
                    for item in Envelope.deserialize(body).items:
                        tracker.items.append(item)
                        if item.type == "event" and len(item.get_bytes()) > tracker.limit:
                            status = 413
                        elif item.type == "event":
                            tracker.events.append(item.payload.json)
                time.sleep(tracker.seconds)
                tracker.ready.wait()
                self.answer(status, tracker.headers)

            def do_GET(self):
                tracker.requests.append(self)
                self.answer(200, {})

            def answer(self, status, headers):
                self.send_response(status)
                for name, value in {"content-length": "2", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(b"{}")

            def date_time_string(self, timestamp=None):
                return super().date_time_string(time.time() + tracker.clock)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # a service that stops may not wait for the answer
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.dsn = self.url.replace("//", "//0123456789abcdef@") + "/1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.ready.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def tracker():
    tracker = Tracker()
    yield tracker
    tracker.close()


@pytest.fixture
def other_host():
    """A host that the service calls, which is not the tracker."""
    other_host = Tracker()
    yield other_host
    other_host.close()


class Notifications:
    """A real NOTIFY_SOCKET."""

    def __init__(self, path):
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(path))
        self.sock.settimeout(20)

    def expect(self, line):
        while line not in self.sock.recv(4096).decode().splitlines():
            pass


class Service:
    """The service as a process, on sockets passed the way systemd does, with the routes of service.py."""

    def __init__(self, directory, sockets=(), args=(), app="service:create_app()", python=sys.executable, **settings):
        self.notifications = Notifications(directory / f"n{time.monotonic_ns()}")
        fds = [sock.fileno() for sock in sockets]
        self.stderr_path = self.notifications.path.with_suffix(".err")
        self.began = time.monotonic()
        with self.stderr_path.open("wb") as stderr:
            self.process = subprocess.Popen(
                [python, Path(__file__).with_name("launch.py"), app, *args],
                pass_fds=fds,
                stderr=stderr,
                cwd=directory,
                env={
                    "PATH": os.environ["PATH"],
                    "PYTHONPATH": SRC,
                    "NOTIFY_SOCKET": str(self.notifications.path),
                    "TEST_FDS": json.dumps(fds),
                    "BOOTY_HEALTH_PATH": "/health",
                    **settings,
                },
            )

    def ready(self):
        self.notifications.expect("READY=1")
        return self

    def stop(self, number=signal.SIGTERM):
        """Send SIGTERM, and return once the drain has begun."""
        self.process.send_signal(number)
        self.notifications.expect("STOPPING=1")

    def children(self):
        """Return the PIDs of its child processes."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def wait(self, timeout=20):
        """Return the exit status and what the service wrote to stderr."""
        status = self.process.wait(timeout)
        return status, self.stderr_path.read_text()

    def close(self):
        self.notifications.sock.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="session")
def python_with(tmp_path_factory):
    """Return a function that makes a Python with some packages, and no others, and returns its path."""
    uv = Path(sys.executable).with_name("uv")

    @cache
    def python_with(*requirements):
        python = tmp_path_factory.mktemp("python") / "bin/python"
        subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, python.parents[1]], check=True)
        if requirements:
            subprocess.run([uv, "pip", "install", "-q", "--python", python, *requirements], check=True)
        return python

    return python_with


@pytest.fixture
def start(tmp_path):
    services = []

    def start(**kwargs):
        services.append(Service(tmp_path, **kwargs))
        return services[-1]

    yield start
    for service in services:
        service.close()


@pytest.fixture
def tcp():
    """The TCP socket as systemd holds it."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as sock:
        yield sock


@pytest.fixture
def unix(tmp_path):
    """The internal socket as systemd holds it."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "internal.sock"))
        sock.listen()
        yield sock
