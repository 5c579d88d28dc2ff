"""The runner beside uvicorn and gunicorn: requests, uploads and large responses, memory, and the time of a start.

    .venv/bin/python -m tests.bench.serve [--seconds 2] [--rounds 6]

All servers run all the time, with one process each, and get requests in turns, so that other load of the machine
affects all. A ratio is the smaller one of two: of the rates (the median of the rounds' ratios), and of the CPU time
of a request, which depends less on what else the machine does. Neither side has Sentry. Each line says whether the
bound holds.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

ROOT = Path(__file__).parents[2]
TICK = os.sysconf("SC_CLK_TCK")
THREADS = 4
STARTS = 9

APPS = """
import flask

web = flask.Flask(__name__)
LARGE = b"x" * 1_000_000

@web.get("/")
def hello():
    return "hello"

@web.get("/large")
def large():
    return LARGE

@web.post("/upload")
def upload():
    return str(len(flask.request.get_data()))

async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})
"""
BARE = APPS[APPS.index("async def asgi") :]
UPLOAD = """
wrk.method, wrk.body = "POST", string.rep("x", 5000000)
"""
RUNNER = ["-m", "booty_runner"]
UVICORN = ["-m", "uvicorn", "--loop=uvloop", "--http=httptools", "--lifespan=auto", "--no-access-log"]
# gunicorn waits on keep-alive connections for 2 s, which wrk does not.
GUNICORN = [
    "-m",
    "gunicorn",
    "--worker-class=gthread",
    f"--threads={THREADS}",
    "--keep-alive=75",
    "--log-level=warning",
]


class Service:
    """A server in a process of its own, or gunicorn with its one worker."""

    def __init__(self, directory: Path, command: list[str], app: str) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as sock:
            self.port = sock.getsockname()[1]
        address = [f"--bind=127.0.0.1:{self.port}"] if "gunicorn" in command else [f"--port={self.port}"]
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}/runner/src:{directory}/site",
            "BOOTY_THREADS": str(THREADS),
        }
        began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, *command, app, *address], env=environment, cwd=directory, stderr=subprocess.DEVNULL
        )
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port)) as client:
                    client.sendall(b"GET / HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")
                    assert client.recv(15).startswith(b"HTTP/1.1 200")
                break
            except ConnectionRefusedError:
                if time.monotonic() > began + 20:
                    raise
                time.sleep(0.002)
        self.start_seconds = time.monotonic() - began

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)

    def _processes(self) -> list[Path]:
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [Path(f"/proc/{each}") for each in (pid, *children)]

    def cpu(self) -> float:
        """Return its CPU seconds."""
        stats = [(process / "stat").read_text().rpartition(")")[2].split()[11:13] for process in self._processes()]
        return sum(int(ticks) for stat in stats for ticks in stat) / TICK

    def memory(self) -> float:
        """Return its memory in MB, of which pages that processes share count once."""
        texts = [(process / "smaps_rollup").read_text() for process in self._processes()]
        return sum(int(match[1]) for text in texts if (match := re.search(r"^Pss: +(\d+)", text, re.M))) / 1024

    def load(self, path: str, connections: int, seconds: int, script: Path | None) -> tuple[float, float]:
        """Send requests for some seconds, and return the answers a second and the CPU seconds of one."""
        before, options = self.cpu(), [f"--script={script}"] if script else []
        url = f"http://127.0.0.1:{self.port}{path}"
        done = subprocess.run(
            ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", *options, url],
            capture_output=True,
            text=True,
            check=True,
        )
        answers = re.search(r"(\d+) requests in ([\d.]+)s", done.stdout)
        assert answers, done.stdout
        assert "Non-2xx" not in done.stdout, done.stdout
        count = int(answers[1])
        return count / float(answers[2]), (self.cpu() - before) / count


def judge(what: str, value: float, bound: float, unit: str = "", at_most: bool = False) -> str:
    """Return the end of a line: a value, its bound, and whether it holds."""
    holds = value <= bound if at_most else value >= bound
    miss = "" if holds else f", missed by {abs(value - bound):.2f}{unit}"
    return f"| {what} | {value:.2f}{unit} | {'at most' if at_most else 'at least'} {bound:g}{unit}{miss} |"


def requests(directory: Path, seconds: int, rounds: int) -> None:
    """Print a row for each kind of request."""
    script = directory / "upload.lua"
    script.write_text(UPLOAD)
    kinds = [
        ("ASGI, trivial", UVICORN, "apps:asgi", "/", 16, None, 0.95),
        ("WSGI, trivial", GUNICORN, "apps:web", "/", 16, None, 1.3),
        ("WSGI, 1 MB response", GUNICORN, "apps:web", "/large", 8, None, 1.0),
        ("WSGI, 5 MB upload", GUNICORN, "apps:web", "/upload", 4, script, 0.9),
    ]
    print("| request | runner: a second, µs of CPU | other: a second, µs of CPU |\n| --- | --- | --- |")
    verdicts = []
    for what, other, app, path, connections, lua, bound in kinds:
        with Service(directory, RUNNER, app) as ours, Service(directory, other, app) as theirs:
            measured = []
            for turn in range(rounds + 1):
                pair = [each.load(path, connections, seconds, lua) for each in (ours, theirs)]
                if turn:  # the first turn warms up
                    measured.append(pair)
        rates = statistics.median(mine[0] / other[0] for mine, other in measured)
        ratio = min(rates, statistics.median(other[1] / mine[1] for mine, other in measured))
        cells = []
        for side in range(2):
            rate, cpu = (statistics.median(pair[side][number] for pair in measured) for number in range(2))
            cells.append(f"{rate:.0f}, {cpu * 1e6:.0f}")
        print(f"| {what} | {' | '.join(cells)} |", flush=True)
        verdicts.append(judge(f"{what}, ratio to {other[1]}", ratio, bound))
    print("\n| what | measured | bound |\n| --- | --- | --- |")
    print("\n".join(verdicts))


def starts(directory: Path) -> None:
    """Print a row for memory and for the time of a start, both beside uvicorn."""
    measured: dict[str, list[tuple[float, float]]] = {}
    for _ in range(STARTS):
        for command in (RUNNER, UVICORN):
            with Service(directory, command, "bare:asgi") as service:
                measured.setdefault(command[1], []).append((service.start_seconds, service.memory()))
    (seconds, memory), (seconds_other, memory_other) = (
        tuple(map(statistics.median, zip(*values, strict=True))) for values in measured.values()
    )
    print(judge("memory above uvicorn's", memory - memory_other, 25, " MB", at_most=True))
    print(judge("start above uvicorn's", seconds - seconds_other, 0.15, " s", at_most=True))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=2, help="of each round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=6, help="of which the median counts (%(default)s)")
    args = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("this bench needs wrk: apt-get install wrk")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="booty-bench-")))
        (directory / "apps.py").write_text(APPS)
        (directory / "bare.py").write_text(BARE)
        uv, lock = str(Path(sys.executable).parent / "uv"), str(ROOT / "requirements/bench.txt")
        install = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", str(directory / "site")]
        subprocess.run([*install, "--compile-bytecode", "--require-hashes", "-r", lock], check=True)
        requests(directory, args.seconds, args.rounds)
        starts(directory)


if __name__ == "__main__":
    main()
