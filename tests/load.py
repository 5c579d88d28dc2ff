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
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

# Clients for each host: with a new connection for each request, with keep-alive, with slow requests.
CLIENTS = (10, 10, 4)
# Seconds between two requests of a client. Without a pause the load would take all CPU time of a shared core.
PAUSE = 0.03
# Seconds between two requests of an idle client: shorter than the time after which servers close idle connections.
IDLE_PAUSE = 40
# Seconds and bytes of a slow upload or download, and the number of its parts.
DRIP_SECONDS, DRIP_BYTES, DRIP_PARTS = 20, 4_000_000, 40
# The close code of a WebSocket whose server restarts: the client may reconnect at once.
RESTART = 1012


@dataclass(frozen=True)
class Service:
    """The requests of the clients: a quick path, a slow path, and the key in the answers whose values are counted.

    Without a key, the answers need not be JSON. With `ca`, a file, the clients speak TLS and trust that CA alone.
    Further clients: for each size in `bodies`, one that sends bodies of so many bytes to /size; `idle` clients with a
    kept connection and rare requests; `drips` clients with a slow upload to /size, and as many with a slow download of
    /download?size=…; `sockets` clients that send to the WebSocket /socket and expect the same text back. An answer with
    a status that is not in `statuses` is a failure.
    """

    port: int = 8000
    quick: str = "/health"
    slow: str = "/slow"
    key: str = "release"
    host: str = "load"
    ca: str = ""
    bodies: tuple[int, ...] = ()
    idle: int = 0
    drips: int = 0
    sockets: int = 0
    statuses: tuple[int, ...] = (200,)

    @cached_property
    def tls(self) -> dict[str, Any]:
        """The arguments that have asyncio speak TLS, if `ca` is set."""
        return {"ssl": ssl.create_default_context(cafile=self.ca), "server_hostname": self.host} if self.ca else {}


@dataclass
class Tally:
    """Counts and latencies of all clients so far."""

    latencies: list[float] = field(default_factory=list)
    paths: Counter[str] = field(default_factory=Counter)
    closed_idle: int = 0
    restarted: int = 0
    failures: list[str] = field(default_factory=list)
    releases: Counter[str] = field(default_factory=Counter)


class Refused(Exception):
    """The status of an answer was not expected."""


@dataclass(frozen=True)
class Kind:
    """A kind of client: its path, whether each request has a new connection, and the pause between two requests.

    With a `size`, its requests are a POST with a body of so many bytes. With `seconds`, sending the body, or
    reading that of the answer, takes so long.
    """

    path: str
    close: bool
    pause: float
    size: int = 0
    seconds: float = 0


async def request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: Kind, service: Service
) -> tuple[bool, bytes]:
    """Send one request and read its whole answer; return whether the connection stays open, and the body.

    Raises:
        Refused: the status of the answer is not in `statuses`.
    """
    lines = [f"{'POST' if kind.size else 'GET'} {kind.path} HTTP/1.1", f"Host: {service.host}"]
    lines += ["Accept: application/json", f"Connection: {'close' if kind.close else 'keep-alive'}"]
    lines += [f"Content-Length: {kind.size}"] if kind.size else []
    writer.write("\r\n".join([*lines, "", ""]).encode())
    await writer.drain()
    # The server may answer and close at once after the last part, and drain() fails on a closed connection.
    for part in parts(kind.size, kind):
        await asyncio.sleep(kind.seconds / DRIP_PARTS)
        writer.write(bytes(part))
        await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    if int(lines[0].split()[1]) not in service.statuses:
        raise Refused(lines[0])
    headers = dict(line.split(": ", 1) for line in lines[1:] if line)
    if "content-length" in headers:
        body = b""
        for part in parts(int(headers["content-length"]), kind):
            body += await reader.readexactly(part)
            await asyncio.sleep(0 if kind.size else kind.seconds / DRIP_PARTS)
    else:
        body = b"".join([chunk async for chunk in chunks(reader)])
    return headers.get("connection") != "close" and not kind.close, body


def parts(size: int, kind: Kind) -> list[int]:
    """Return the sizes of the parts in which a client of this kind sends or reads so many bytes."""
    if not kind.seconds or size < DRIP_PARTS:
        return [size] if size else []
    return [size // DRIP_PARTS] * (DRIP_PARTS - 1) + [size - size // DRIP_PARTS * (DRIP_PARTS - 1)]


async def chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield the chunks of an answer without a Content-Length."""
    while size := int(await reader.readline(), 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)


async def client(address: str, service: Service, kind: Kind, tally: Tally, stop: asyncio.Event) -> None:
    """Send requests until `stop` is set: each on a new connection, or all on one as long as the server keeps it."""
    stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    while not stop.is_set():
        began = time.monotonic()
        try:
            # A server may close an idle connection. If the client notices before its next request, nothing is lost.
            if stream is None or stream[0].at_eof():
                if stream and not kind.close:
                    tally.closed_idle += 1
                stream = await asyncio.open_connection(address, service.port, **service.tls)
            stays, body = await asyncio.wait_for(request(*stream, kind, service), 60)
            answer = json.loads(body) if service.key and not kind.seconds else {}
        except (TimeoutError, OSError, EOFError, Refused, ValueError) as error:
            tally.failures.append(f"{address} {kind.path} {'fresh' if kind.close else 'kept'}: {error!r}")
            stays, answer = False, {}
        ended = time.monotonic()
        tally.paths[kind.path] += 1
        if kind.path == service.quick:
            tally.latencies.append(ended - began)
            tally.releases[str(answer.get(service.key))] += 1
        if not stays and stream:
            stream[1].close()
            stream = None
        while not stop.is_set() and (left := ended + kind.pause - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 1))


async def socket(address: str, service: Service, tally: Tally, stop: asyncio.Event) -> None:
    """Send texts on a WebSocket and expect them back until `stop` is set; reconnect at once if the server restarts."""
    url = f"{'wss' if service.ca else 'ws'}://{service.host}/socket"
    while not stop.is_set():
        try:
            async with connect(url, host=address, port=service.port, proxy=None, **service.tls) as opened:
                while not stop.is_set():
                    text = str(time.monotonic())
                    await opened.send(text)
                    if (echo := await asyncio.wait_for(opened.recv(), 60)) != text:
                        tally.failures.append(f"{address} WebSocket: {echo!r} instead of {text!r}")
                    tally.paths["/socket"] += 1
                    await asyncio.sleep(0.2)
        except ConnectionClosed as error:
            if error.rcvd and error.rcvd.code == RESTART:
                tally.restarted += 1
            else:
                tally.failures.append(f"{address} WebSocket: {error!r}")
        except (OSError, EOFError, TimeoutError, InvalidHandshake) as error:
            tally.failures.append(f"{address} WebSocket: {error!r}")
            await asyncio.sleep(0.2)


async def load(hosts: list[str], service: dict[str, Any], clients: tuple[int, int, int], pause: float) -> Tally:
    """Run all clients of all hosts until standard input is closed."""
    tally, stop, asked = Tally(), asyncio.Event(), Service(**service)
    loop = asyncio.get_running_loop()

    def end() -> None:
        loop.remove_reader(sys.stdin)
        stop.set()

    loop.add_reader(sys.stdin, end)
    fresh, kept, slow = clients
    kinds = [
        *[Kind(asked.quick, True, pause)] * fresh,
        *[Kind(asked.quick, False, pause)] * kept,
        *[Kind(asked.slow, False, pause)] * slow,
        *(Kind("/size", False, pause, size) for size in asked.bodies),
        *[Kind(f"{asked.quick}?idle", False, IDLE_PAUSE)] * asked.idle,
        *[Kind("/size?drip", False, 0, DRIP_BYTES, DRIP_SECONDS)] * asked.drips,
        *[Kind(f"/download?size={10 * DRIP_BYTES}", False, 0, seconds=DRIP_SECONDS)] * asked.drips,
    ]
    await asyncio.gather(
        *(client(host, asked, kind, tally, stop) for host in hosts for kind in kinds),
        *(socket(host, asked, tally, stop) for host in hosts for _ in range(asked.sockets)),
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
        "requests": tally.paths.total(),
        "paths": tally.paths,
        "failed": len(tally.failures),
        "closed_idle": tally.closed_idle,
        "restarted": tally.restarted,
        "failures": Counter(tally.failures).most_common(10),
        "releases": tally.releases,
        "p50": percentile(latencies, 0.5),
        "p99.9": percentile(latencies, 0.999),
        "slowest": latencies[-1] if latencies else 0.0,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
