"""The cost of telemetry: requests with and without an error, to the service with Sentry and without, in one run.

    .venv/bin/python -m tests.bench.telemetry [--seconds 3] [--rounds 5] [--on-a-host]

Both services run all the time and get requests in turns, so that other load of the machine affects both. The client is
wrk if it is installed, else a small one in this file. A client needs CPU time too, so the service's CPU time says more
than its requests a second.
"""

from __future__ import annotations

import argparse
import asyncio
import http.server
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CLIENTS = 16
TICK = os.sysconf("SC_CLK_TCK")

SERVICE = """
import sys
from booty import routes
from booty_runner.__main__ import main

@routes.router.get("/fail")
async def fail() -> None:
    raise LookupError("one error")

sys.exit(main())
"""


class Server(http.server.ThreadingHTTPServer):
    """A server that prints no error when the service stops before it has read the answer."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print no error."""


class Accepting(http.server.BaseHTTPRequestHandler):
    """A tracker that accepts every event."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer 200."""
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        """Print no request."""


def tracker() -> str:
    """Start the tracker in this process and return its DSN."""
    server = Server(("127.0.0.1", 0), Accepting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://0123456789abcdef@127.0.0.1:{server.server_port}/1"


class Service:
    """The service in another process."""

    def __init__(self, directory: Path, **settings: str) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as sock:
            self.port = sock.getsockname()[1]
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}/runner/src:{ROOT}/app/src",
            **settings,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVICE, "booty.main:create_app()", f"--port={self.port}"],
            env=environment,
            cwd=directory,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def cpu(self) -> tuple[float, float]:
        """Return the CPU seconds of the service: of the main thread, which has the event loop, and of all threads."""
        process = Path(f"/proc/{self.process.pid}")
        stats = (process / "task" / str(self.process.pid) / "stat", process / "stat")
        loop, whole = (stat.read_text().rpartition(")")[2].split()[11:13] for stat in stats)
        return sum(map(int, loop)) / TICK, sum(map(int, whole)) / TICK

    def stop(self) -> None:
        """Stop the service."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)


@contextmanager
def services() -> Iterator[dict[str, Service]]:
    """Run the service without Sentry and with it."""
    with tempfile.TemporaryDirectory() as directory:
        running = {
            "without Sentry": Service(Path(directory)),
            "with Sentry": Service(Path(directory), SENTRY_DSN=tracker(), SENTRY_RELEASE="0" * 40),
        }
        try:
            yield running
        finally:
            for service in running.values():
                service.stop()


async def _client(port: int, path: str, until: float) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request, answers = f"GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n".encode(), 0
    while time.monotonic() < until:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length
        await reader.readexactly(int(length[1]))
        answers += 1
    writer.close()
    return answers


def load(port: int, path: str, seconds: float) -> int:
    """Send requests for some seconds, and return the number of answers."""
    if wrk := shutil.which("wrk"):
        url, options = f"http://127.0.0.1:{port}{path}", ["-t1", f"-c{CLIENTS}", f"-d{seconds:g}s"]
        done = subprocess.run([wrk, *options, url], capture_output=True, text=True, check=True)
        match = re.search(r"(\d+) requests in", done.stdout)
        assert match
        return int(match[1])

    async def ask() -> int:
        until = time.monotonic() + seconds
        return sum(await asyncio.gather(*(_client(port, path, until) for _ in range(CLIENTS))))

    return asyncio.run(ask())


def on_a_host(arguments: list[str]) -> None:
    """Deploy to a sandbox host, and run this program on it with the Python of the release."""
    from tests.bench import on_hosts

    def measure(hosts: list[Any], directory: Path) -> None:
        ansible, inventory = str(Path(sys.executable).parent / "ansible-playbook"), str(directory / "hosts.yml")
        for playbook in ("bootstrap.yml", "deploy.yml"):
            command = [ansible, playbook, "-i", inventory, "-e", "app_environment=staging"]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=300)
        remote = (
            "mkdir -p bench/of/this && cat > bench/of/this/one.py && . /etc/booty/release.env && systemctl stop booty"
        )
        remote += f" && $BOOTY_RELEASE_DIR/bin/python bench/of/this/one.py {' '.join(arguments)}"
        done = hosts[0].ssh(remote, input=Path(__file__).read_text(), timeout=600)
        print(done.stdout or done.stderr, end="")

    on_hosts(measure)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3, help="of each round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median counts (%(default)s)")
    parser.add_argument("--on-a-host", action="store_true", help="on a sandbox host, with HEAD as a release")
    args = parser.parse_args()
    if args.on_a_host:
        on_a_host([f"--seconds={args.seconds}", f"--rounds={args.rounds}"])
        return
    print("| path | service | requests a second | event loop, ms of CPU a request | all threads |")
    print("| --- | --- | --- | --- | --- |")
    with services() as running:
        for path in ("/", "/fail"):
            measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in running}
            for turn in range(args.rounds + 1):
                for name, service in running.items():
                    before, began = service.cpu(), time.monotonic()
                    answers = load(service.port, path, args.seconds)
                    rate = answers / (time.monotonic() - began)
                    loop, whole = ((after - b) / answers * 1000 for after, b in zip(service.cpu(), before, strict=True))
                    if turn:  # the first turn warms up
                        measured[name].append((rate, loop, whole))
            rows = [tuple(map(statistics.median, zip(*turns, strict=True))) for turns in measured.values()]
            for name, (rate, loop, whole) in zip(running, rows, strict=True):
                print(f"| `{path}` | {name} | {rate:.0f} | {loop:.2f} | {whole:.2f} |")
            (rate, *costs), (rate_with, *costs_with) = rows
            more = [f"**+{high - low:.2f}**" for low, high in zip(costs, costs_with, strict=True)]
            print(f"| `{path}` | **ratio, difference** | **{rate_with / rate:.2f}** | {' | '.join(more)} |")


if __name__ == "__main__":
    main()
