"""A load generator over raw sockets, without retries and connection pools: it counts every failed request.

`python -m tests.load '{"hosts": [HOST], …}'` runs until its standard input is closed, then prints a report as JSON.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

# Clients for each host: with a new connection for each request, with keep-alive, with slow requests.
CLIENTS = (10, 10, 4)
# Seconds between two requests of a client. Without a pause the load would leave a deploy no time on a shared core.
PAUSE = 0.03


@dataclass(frozen=True)
class Service:
    """What the clients ask: a path that answers at once, a slow one, and the key of the answer whose values count.

    Without a key, the answers need not be JSON. With `ca`, a file, the clients speak TLS and trust that CA alone. For
    each size in `bodies`, one more client sends bodies of so many bytes to /size.
    """

    port: int = 8000
    quick: str = "/health"
    slow: str = "/slow"
    key: str = "release"
    host: str = "load"
    ca: str = ""
    bodies: tuple[int, ...] = ()


@dataclass
class Tally:
    """Counts and latencies of all clients so far."""

    latencies: list[float] = field(default_factory=list)
    slow: int = 0
    closed_idle: int = 0
    failures: list[str] = field(default_factory=list)
    releases: Counter[str] = field(default_factory=Counter)


class Refused(Exception):
    """The status of an answer was not 200."""


async def request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, host: str, close: bool, size: int = 0
) -> tuple[bool, bytes]:
    """Send one request and read its whole answer; return whether the connection stays open, and the body.

    With a `size`, the request is a POST with a body of so many bytes.
    """
    lines = [f"{'POST' if size else 'GET'} {path} HTTP/1.1", f"Host: {host}"]
    lines += [f"Connection: {'close' if close else 'keep-alive'}", *([f"Content-Length: {size}"] if size else [])]
    writer.write("\r\n".join([*lines, "", ""]).encode() + bytes(size))
    await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    if " 200" not in lines[0]:
        raise Refused(lines[0])
    headers = dict(line.split(": ", 1) for line in lines[1:] if line)
    if "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body = b"".join([chunk async for chunk in chunks(reader)])
    return headers.get("connection") != "close" and not close, body


async def chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield the chunks of an answer without a Content-Length."""
    while size := int(await reader.readline(), 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)


async def client(
    address: str,
    service: Service,
    path: str,
    close: bool,
    pause: float,
    tally: Tally,
    stop: asyncio.Event,
    size: int = 0,
) -> None:
    """Send requests until `stop` is set: each on a new connection, or all on one as long as the server keeps it."""
    options: dict[str, Any] = {}
    if service.ca:
        options = {"ssl": ssl.create_default_context(cafile=service.ca), "server_hostname": service.host}
    stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    while not stop.is_set():
        began = time.monotonic()
        try:
            # A server may close an idle connection. If the client notices before its next request, nothing is lost.
            if stream is None or stream[0].at_eof():
                if stream and not close:
                    tally.closed_idle += 1
                stream = await asyncio.open_connection(address, service.port, **options)
            stays, body = await asyncio.wait_for(request(*stream, path, service.host, close, size), 60)
            answer = json.loads(body) if service.key else {}
        except (TimeoutError, OSError, EOFError, Refused, ValueError) as error:
            tally.failures.append(f"{address} {path} {'fresh' if close else 'kept'}: {error!r}")
            stays, answer = False, {}
        took = time.monotonic() - began
        if path == service.quick:
            tally.latencies.append(took)
            tally.releases[str(answer.get(service.key))] += 1
        else:
            tally.slow += 1
        if not stays and stream:
            stream[1].close()
            stream = None
        await asyncio.sleep(pause)


async def load(hosts: list[str], service: dict[str, Any], clients: tuple[int, int, int], pause: float) -> Tally:
    """Run all clients of all hosts until standard input is closed."""
    tally, stop, asked = Tally(), asyncio.Event(), Service(**service)
    loop = asyncio.get_running_loop()

    def end() -> None:
        loop.remove_reader(sys.stdin)
        stop.set()

    loop.add_reader(sys.stdin, end)
    fresh, kept, slow = clients
    kinds = [(asked.quick, True)] * fresh + [(asked.quick, False)] * kept + [(asked.slow, False)] * slow
    await asyncio.gather(
        *(client(host, asked, path, close, pause, tally, stop) for host in hosts for path, close in kinds),
        *(client(host, asked, "/size", False, pause, tally, stop, size) for host in hosts for size in asked.bodies),
    )
    return tally


def percentile(sorted_values: list[float], share: float) -> float:
    """Return the value that this share of a sorted list does not exceed; 0 for an empty one."""
    return sorted_values[min(int(len(sorted_values) * share), len(sorted_values) - 1)] if sorted_values else 0.0


class Load:
    """Run the load in another process during a `with` block. `report` holds its report after the block.

    Further keywords are the fields of `Service`.
    """

    def __init__(
        self, *hosts: str, clients: tuple[int, int, int] = CLIENTS, pause: float = PAUSE, **service: Any
    ) -> None:
        arguments = {"hosts": hosts, "service": service, "clients": clients, "pause": pause}
        self._command = [sys.executable, "-m", "tests.load", json.dumps(arguments)]
        self.report: dict[str, Any] = {}

    def __enter__(self) -> Load:
        root = Path(__file__).parent.parent
        self._process = subprocess.Popen(
            self._command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        time.sleep(0.5)  # by now every client has sent its first request
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        time.sleep(0.5)
        output, _ = self._process.communicate("", timeout=60)
        self.report = json.loads(output)


def main() -> None:
    """Run the load and print the report."""
    tally = asyncio.run(load(**json.loads(sys.argv[1])))
    latencies = sorted(tally.latencies)
    report = {
        "requests": len(latencies) + tally.slow,
        "failed": len(tally.failures),
        "closed_idle": tally.closed_idle,
        "failures": Counter(tally.failures).most_common(10),
        "releases": tally.releases,
        "p50": percentile(latencies, 0.5),
        "p99.9": percentile(latencies, 0.999),
        "slowest": latencies[-1] if latencies else 0.0,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
