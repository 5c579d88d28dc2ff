"""Attacks through the proxy on a real host: forged names and headers, smuggled requests, slow and oversized clients."""

from __future__ import annotations

import json
import resource
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from sandbox import hosts as sandbox
from tests import h2
from tests.conftest import INSTANCE
from tests.test_proxy_host import NAME, OTHER, Front

# The app records each request that reaches it. A request of /seen returns the records and clears them.
APP = """
import asyncio
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
router = APIRouter()
seen = []
@router.get("/seen")
async def tell() -> list:
    told = seen[:]
    seen.clear()
    return told
@router.get("/split")
async def split(kind: str) -> Response:
    if kind == "value":
        return Response("x", headers={"X-A": "b\\r\\nContent-Length: 0\\r\\n\\r\\nHTTP/1.1 200 OK"})
    if kind == "name":
        return Response("x", headers={"X-A: b\\r\\nX-C": "d"})
    if kind == "both":
        return Response("HTTP/1.1 200 OK", headers={"Transfer-Encoding": "chunked"})
    if kind == "204":
        return Response(status_code=204, headers={"Content-Length": "5"})
    if kind == "short":
        return Response("HTTP/1.1 200 OK\\r\\nContent-Length: 3\\r\\n\\r\\nbad", headers={"Content-Length": "10"})
    async def body():
        yield b"HTTP/1.1 200 OK\\r\\nContent-Length: 3\\r\\n\\r\\n"
        yield b"bad"
    return StreamingResponse(body(), headers={"Content-Length": {"long": "5", "early": "500"}[kind]})
@router.post("/size")
async def size(request: Request) -> dict[str, int]:
    count = 0
    async for part in request.stream():
        count += len(part)
    return {"size": count}
@router.api_route("/{path:path}", methods=["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
async def any_path(path: str, request: Request) -> dict:
    body = (await request.body()).decode("latin-1")
    heard = {"path": "/" + path, "body": body, "headers": [list(pair) for pair in request.headers.items()],
             "client": request.client.host, "url": str(request.url)}
    if path != "victim":
        seen.append(heard)
    return heard
"""
SMUGGLED = "GET /smuggled HTTP/1.1\r\nHost: " + NAME + "\r\n\r\n"


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """Return a host with the proxy, and an app that reports the requests that reached it."""
    directory, name = tmp_path_factory.mktemp("attacks"), f"{INSTANCE}-attacks"
    try:
        (host,) = sandbox.up(name, 1, with_tracker=False, with_acme=True, inventory=directory / "inventory/hosts.yml")
        front = Front(host, directory)
        front.ca.point(NAME, [host.address])
        front.good("bootstrap.yml")
        prepare(front)
        yield front
    finally:
        sandbox.down(name)


def prepare(front: Front) -> None:
    """Deploy the app."""
    front.repository.write("app/src/booty/routes.py", f"{APP}# {time.monotonic()}\n")
    front.repository.commit("An app that tells")
    # This machine runs all clients, good and bad ones, from one address.
    front.variables["app_client_connections"] = 0
    front.good("deploy.yml")
    front.settle()


def send(front: Front, data: bytes, seconds: float = 3) -> bytes:
    """Send bytes over a new TLS connection, and return what comes back within some seconds."""
    with front.connect() as connection:
        connection.settimeout(seconds)
        received = b""
        with suppress(OSError):
            connection.sendall(data)
            while part := connection.recv(65536):
                received += part
        return received


def told(front: Front) -> list[dict[str, Any]]:
    """Return the requests that reached the app since the last call."""
    status, _, body = front.ask("GET /seen")
    assert status == 200
    return list(json.loads(body))


def unharmed(front: Front) -> None:
    """Check that other clients get their own answers, on all connections that nginx keeps to the app."""
    for number in range(10):
        status, _, body = front.ask(f"GET /victim?{number}")
        assert status == 200
        assert json.loads(body)["url"] == f"https://{NAME}/victim?{number}"


# --- names ----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_host_and_sni_that_differ(front: Front) -> None:
    told(front)
    for host in ("evil.example", OTHER, "127.0.0.1", "localhost", "_", "booty", f"{NAME}.evil.example", ""):
        status, _, body = front.ask(f"GET /host\r\nHost: {host}\r\n")
        assert status in {400, 421}, (host, status, body)
        assert b"nginx!" not in body
    for target in ("http://evil.example/host", "https://evil.example/host"):
        assert front.ask(f"GET {target}")[0] in {400, 421}
    for lines in ("Host: a\r\nHost: b\r\n", f"Host: {NAME}\r\nHost: evil.example\r\n", f"Host: {NAME} evil\r\n",
                  f"Host: {NAME}@evil.example\r\n", f"Host: {NAME}/x\r\n", f"Host: {NAME}:x/\r\n",
                  f"Host: evil.example\r\nX-Forwarded-Host: {NAME}\r\n"):  # fmt: skip
        assert b" 200 " not in send(front, f"GET /host HTTP/1.1\r\n{lines}\r\n".encode()).split(b"\r\n")[0], lines
    assert b" 200 " not in send(front, b"GET /host HTTP/1.1\r\n\r\n")
    assert told(front) == []
    for host in (NAME, NAME.upper(), f"{NAME}.", f"{NAME}:443", f"{NAME}:8443"):
        assert front.ask(f"GET /host\r\nHost: {host}\r\n")[0] == 200
    hosts = {dict(map(tuple, heard["headers"]))["host"] for heard in told(front)}
    assert hosts == {NAME}
    context = ssl.create_default_context(cafile=str(front.ca.root))
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for name in (None, "evil.example", front.host.address):
        with pytest.raises(ssl.SSLError), socket.create_connection((front.host.address, 443), timeout=10) as plain:
            context.wrap_socket(plain, server_hostname=name)
    for host in ("evil.example", ""):
        with socket.create_connection((front.host.address, 80), timeout=10) as connection:
            connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert b" 200 " not in connection.recv(1000)


FORGED = (
    *("X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Prefix"),
    *("X-Forwarded-Ssl", "X-Forwarded-Scheme", "X-Forwarded-Server", "X-Scheme", "X-Original-URL", "X-Rewrite-URL"),
    *("Forwarded", "X-Real-IP", "Proxy", "X-Booty-Ask", "X-Booty-Peer", "X_Forwarded_For", "x-forwarded-for"),
    *("X-Forwarded_Host", "X.Forwarded.For", "Proxy-Connection", "Keep-Alive"),
)


@pytest.mark.long
def test_forged_headers(front: Front) -> None:
    told(front)
    lines = "".join(f"{name}: evil\r\n{name}: evil2\r\n" for name in FORGED)
    assert front.ask(f"GET /forged\r\n{lines}")[0] == 200
    for named in ("X-Forwarded-For", "X-Request-ID, X-Forwarded-Proto", "Host", "X-Real-IP, close"):
        data = f"GET /forged HTTP/1.1\r\nHost: {NAME}\r\nConnection: {named}\r\nX-Forwarded-For: evil\r\n\r\n"
        send(front, data.encode(), 1)
    with front.connect(protocols=("h2",)) as connection:
        answer = h2.ask(connection, [*get(b"/forged"), *((name.lower().encode(), b"evil") for name in FORGED[:-2])])
        assert answer.status in {200, None}
    heard = told(front)
    assert len(heard) >= 5
    for each in heard:
        names = [name for name, _ in each["headers"]]
        values = dict(map(tuple, each["headers"]))
        for name in ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-request-id", "host"):
            assert names.count(name) == 1, (name, names)
        assert values["x-forwarded-for"] == each["client"] == str(front.ca.address)
        assert (values["x-forwarded-proto"], values["x-forwarded-host"]) == ("https", NAME)
        allowed = {"proxy-connection", "keep-alive", "x.forwarded.for"}
        assert not [name for name, value in each["headers"] if "evil" in value and name not in allowed], each["headers"]


# --- smuggling: from the client through nginx to the runner ----------------------------------------------

HEAD = f"POST /carrier HTTP/1.1\r\nHost: {NAME}\r\n"
CHUNKED = f"0\r\n\r\n{SMUGGLED}"
LENGTH = len(SMUGGLED)
SMUGGLING = {
    "CL and TE": f"{HEAD}Content-Length: {len(CHUNKED)}\r\nTransfer-Encoding: chunked\r\n\r\n{CHUNKED}",
    "TE and CL": f"{HEAD}Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n{LENGTH:x}\r\n{SMUGGLED}\r\n0\r\n\r\n",
    "two CL": f"{HEAD}Content-Length: 0\r\nContent-Length: {LENGTH}\r\n\r\n{SMUGGLED}",
    "two CL, turned": f"{HEAD}Content-Length: {LENGTH}\r\nContent-Length: 0\r\n\r\n{SMUGGLED}",
    "a list of CL": f"{HEAD}Content-Length: 0, {LENGTH}\r\n\r\n{SMUGGLED}",
    "a CL with a plus": f"{HEAD}Content-Length: +{LENGTH}\r\n\r\n{SMUGGLED}",
    "a CL in hexadecimal": f"{HEAD}Content-Length: 0x{LENGTH:x}\r\n\r\n{SMUGGLED}",
    "a negative CL": f"{HEAD}Content-Length: -1\r\n\r\n{SMUGGLED}",
    "a CL too large": f"{HEAD}Content-Length: 18446744073709551616\r\n\r\n{SMUGGLED}",
    "a CL with a blank": f"{HEAD}Content-Length: {LENGTH} 0\r\n\r\n{SMUGGLED}",
    "a CL before its colon": f"{HEAD}Content-Length : {LENGTH}\r\n\r\n{SMUGGLED}",
    "an underscore for CL": f"{HEAD}Content_Length: {LENGTH}\r\n\r\n{SMUGGLED}",
    "TE twice": f"{HEAD}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n{CHUNKED}",
    "a list of TE": f"{HEAD}Transfer-Encoding: gzip, chunked\r\n\r\n{CHUNKED}",
    "chunked first": f"{HEAD}Content-Length: {len(CHUNKED)}\r\nTransfer-Encoding: chunked, identity\r\n\r\n{CHUNKED}",
    "a wrong TE": f"{HEAD}Content-Length: {len(CHUNKED)}\r\nTransfer-Encoding: xchunked\r\n\r\n{CHUNKED}",
    "a quoted TE": f'{HEAD}Content-Length: {len(CHUNKED)}\r\nTransfer-Encoding: "chunked"\r\n\r\n{CHUNKED}',
    "a TE with a tab": f"{HEAD}Content-Length: {len(CHUNKED)}\r\nTransfer-Encoding:\tchunked\r\n\r\n{CHUNKED}",
    "a TE with VT": f"{HEAD}Content-Length: {len(CHUNKED)}\r\nTransfer-Encoding:\x0bchunked\r\n\r\n{CHUNKED}",
    "a TE before its colon": f"{HEAD}Content-Length: {len(CHUNKED)}\r\nTransfer-Encoding : chunked\r\n\r\n{CHUNKED}",
    "a folded TE": f"{HEAD}Content-Length: {len(CHUNKED)}\r\nTransfer-Encoding:\r\n chunked\r\n\r\n{CHUNKED}",
    "a TE in HTTP/1.0": f"{HEAD}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n{CHUNKED}".replace("1.1", "1.0"),
    "a TE behind a bare LF": f"{HEAD}X: y\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n{CHUNKED}",
    "a TE behind a bare CR": f"{HEAD}X: y\rTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n{CHUNKED}",
    "a NUL in a header": f"{HEAD}X: y\0\r\nContent-Length: 5\r\n\r\n{CHUNKED}",
    "a head with bare LF": f"POST /carrier HTTP/1.1\nHost: {NAME}\nContent-Length: 0\n\n{SMUGGLED}",
    "a folded header": f"{HEAD}X: y\r\n Content-Length: 0\r\nContent-Length: {LENGTH}\r\n\r\n{SMUGGLED}",
    "a header without a colon": f"{HEAD}Content-Length\r\nContent-Length: {LENGTH}\r\n\r\n{SMUGGLED}",
    "a header that starts with a blank": f"POST /carrier HTTP/1.1\r\n Host: {NAME}\r\nHost: {NAME}\r\n\r\n{SMUGGLED}",
    "a chunk's extension": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n{LENGTH:x};a=b\r\n{SMUGGLED}\r\n0;c\r\n\r\n",
    "an extension with LF": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n2;\nxx\r\n{LENGTH:x}\r\n0\r\n\r\n{SMUGGLED}",
    "a quoted extension": f'{HEAD}Transfer-Encoding: chunked\r\n\r\n2;a="\r\nxx\r\n0\r\n\r\n{SMUGGLED}"\r\n',
    "a chunk in 0x": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n0x{LENGTH:x}\r\n{SMUGGLED}\r\n0\r\n\r\n",
    "a negative chunk": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n-1\r\n{SMUGGLED}",
    "a chunk too large": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n10000000000000000{LENGTH:x}\r\n{SMUGGLED}",
    "a chunk with an underscore": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n0_\r\n\r\n{SMUGGLED}",
    "chunks with LF": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n2\nxx\n0\n\n{SMUGGLED}",
    "a chunk that is short": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n2\r\nxxx\r\n0\r\n\r\n{SMUGGLED}",
    "trailers": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: {LENGTH}\r\nHost: evil\r\n\r\n",
    "CL as hop by hop": f"{HEAD}Connection: close, Content-Length\r\nContent-Length: {LENGTH}\r\n\r\n{SMUGGLED}",
    "TE as hop by hop": f"{HEAD}Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\r\n{LENGTH:x}\r\n"
    f"{SMUGGLED}\r\n0\r\n\r\n",
    "a WebSocket with a body": f"GET /carrier HTTP/1.1\r\nHost: {NAME}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nContent-Length: {LENGTH}\r\n\r\n"
    f"{SMUGGLED}",
    "a wrong version of WebSockets": f"GET /carrier HTTP/1.1\r\nHost: {NAME}\r\nUpgrade: websocket\r\nConnection:"
    f" Upgrade\r\nSec-WebSocket-Version: 99\r\nContent-Length: {LENGTH}\r\n\r\n{SMUGGLED}",
    "h2c": f"POST /carrier HTTP/1.1\r\nHost: {NAME}\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    f"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nContent-Length: {LENGTH}\r\n\r\n{SMUGGLED}",
    "Expect": f"{HEAD}Expect: 100-continue\r\nContent-Length: {LENGTH}\r\n\r\n{SMUGGLED}",
    "an unknown Expect": f"{HEAD}Expect: y 100-continue\r\nContent-Length: {LENGTH}\r\n\r\n{SMUGGLED}",
    "a GET with a body": f"GET /carrier HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {LENGTH}\r\n\r\n{SMUGGLED}",
    "a HEAD with a body": f"HEAD /carrier HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {LENGTH}\r\n\r\n{SMUGGLED}",
    "a target with a blank": f"GET /a /b HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {LENGTH}\r\n\r\n{SMUGGLED}",
    "a target with CR": f"GET /a\rHTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {LENGTH}\r\n\r\n{SMUGGLED}",
    "encoded line ends": f"GET /a%20HTTP/1.1%0d%0aX:%20x%0d%0a%0d%0aGET%20/smuggled HTTP/1.1\r\nHost: {NAME}\r\n\r\n",
    "encoded line ends in the query": f"GET /a?x=%0d%0a%0d%0aGET%20/smuggled HTTP/1.1\r\nHost: {NAME}\r\n\r\n",
    "HTTP/0.9": "GET /smuggled\r\n",
    "HTTP/2.0 in a line": f"GET /smuggled HTTP/2.0\r\nHost: {NAME}\r\n\r\n",
    "HTTP/1.2": f"POST /carrier HTTP/1.2\r\nHost: {NAME}\r\nContent-Length: {LENGTH}\r\n\r\n{SMUGGLED}",
    "an unknown method": f"GET/smuggled HTTP/1.1\r\nHost: {NAME}\r\n\r\n",
    "TRACE": f"TRACE /smuggled HTTP/1.1\r\nHost: {NAME}\r\n\r\n",
    "CONNECT": f"CONNECT {NAME}:443 HTTP/1.1\r\nHost: {NAME}\r\n\r\n{SMUGGLED}",
}
# nginx itself sees the second request here, as a request of the same client, so nothing is smuggled past nginx.
OWN = {"two heads": f"{HEAD}\r\n{SMUGGLED}", "lines before": f"\r\n\r\n{SMUGGLED}"}


@pytest.mark.long
@pytest.mark.parametrize("way", SMUGGLING)
def test_nothing_is_smuggled_past_nginx(front: Front, way: str) -> None:
    """The app and nginx agree where a request ends; a body never becomes a request of another client."""
    told(front)
    received = send(front, SMUGGLING[way].encode("latin-1"), 1)
    answers = received.count(b"HTTP/1.1 ")
    heard = told(front)
    # The app gets no more requests than nginx answers to this client; nginx refuses some itself.
    assert len(heard) <= max(answers, 1), (received, heard)
    unharmed(front)


@pytest.mark.long
def test_more_requests_on_one_connection_are_answered_in_order(front: Front) -> None:
    for way, data in OWN.items():
        told(front)
        send(front, data.encode(), 2)
        assert [each["path"] for each in told(front)][-1] == "/smuggled", way
    unharmed(front)


def get(path: bytes, method: bytes = b"GET", authority: bytes = NAME.encode()) -> list[tuple[bytes, bytes]]:
    """Return the pseudo-headers of a request."""
    return [(b":method", method), (b":scheme", b"https"), (b":authority", authority), (b":path", path)]


LINE_END = b"\r\nX-Smuggled: 1\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
BODY = SMUGGLED.encode()
H2: dict[str, tuple[list[tuple[bytes, bytes]], bytes]] = {
    "a CL that is too small": ([*get(b"/carrier", b"POST"), (b"content-length", b"1")], BODY),
    "a CL of 0": ([*get(b"/carrier", b"POST"), (b"content-length", b"0")], BODY),
    "two CL": ([*get(b"/carrier", b"POST"), (b"content-length", b"0"), (b"content-length", b"%d" % len(BODY))], BODY),
    "TE": ([*get(b"/carrier", b"POST"), (b"transfer-encoding", b"chunked")], b"0\r\n\r\n" + BODY),
    "TE with a blank": ([*get(b"/carrier", b"POST"), (b"transfer-encoding ", b"chunked")], b"0\r\n\r\n" + BODY),
    "TE in capitals": ([*get(b"/carrier", b"POST"), (b"Transfer-Encoding", b"chunked")], b"0\r\n\r\n" + BODY),
    "Connection": ([*get(b"/carrier", b"POST"), (b"connection", b"transfer-encoding")], BODY),
    "Upgrade": ([*get(b"/carrier"), (b"upgrade", b"websocket"), (b"connection", b"upgrade")], b""),
    "te": ([*get(b"/carrier"), (b"te", b"trailers, chunked")], b""),
    "line ends in a value": ([*get(b"/carrier"), (b"x", b"y" + LINE_END)], b""),
    "LF in a value": ([*get(b"/carrier"), (b"x", b"y\nX-Smuggled: 1")], b""),
    "CR in a value": ([*get(b"/carrier"), (b"x", b"y\rX-Smuggled: 1")], b""),
    "NUL in a value": ([*get(b"/carrier"), (b"x", b"y\0z")], b""),
    "line ends in a name": ([*get(b"/carrier"), (b"x: y\r\nx-smuggled", b"1")], b""),
    "a colon in a name": ([*get(b"/carrier"), (b"x-smuggled: 1", b"1")], b""),
    "a blank in a name": ([*get(b"/carrier"), (b"x smuggled", b"1")], b""),
    "an empty name": ([*get(b"/carrier"), (b"", b"1")], b""),
    "line ends in the path": (get(b"/carrier HTTP/1.1" + LINE_END), b""),
    "a blank in the path": (get(b"/carrier HTTP/1.1 x"), b""),
    "a path without a slash": (get(b"carrier"), b""),
    "a whole URL as the path": (get(b"http://evil.example/smuggled"), b""),
    "an empty path": (get(b""), b""),
    "line ends in the method": (get(b"/carrier", b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET"), b""),
    "a blank in the method": (get(b"/carrier", b"GET /smuggled"), b""),
    "line ends in the authority": (get(b"/carrier", authority=NAME.encode() + LINE_END), b""),
    "another authority": (get(b"/carrier", authority=b"evil.example"), b""),
    "another host": ([*get(b"/carrier"), (b"host", b"evil.example")], b""),
    "no authority, another host": ([*get(b"/carrier")[:2], *get(b"/carrier")[3:], (b"host", b"evil.example")], b""),
    "the path twice": ([*get(b"/carrier"), (b":path", b"/smuggled")], b""),
    "a pseudo-header behind others": ([(b"x", b"y"), *get(b"/carrier")], b""),
    "an unknown pseudo-header": ([*get(b"/carrier"), (b":smuggled", b"1")], b""),
    "a scheme with line ends": ([*get(b"/carrier")[:1], (b":scheme", b"https" + LINE_END), *get(b"/carrier")[2:]], b""),
    "CONNECT": (get(b"/carrier", b"CONNECT"), b""),
    "a WebSocket": ([*get(b"/carrier", b"CONNECT"), (b":protocol", b"websocket")], b""),
    "a cookie with line ends": ([*get(b"/carrier"), (b"cookie", b"a=b" + LINE_END)], b""),
}


@pytest.mark.long
@pytest.mark.parametrize("way", H2)
def test_nothing_is_smuggled_from_http2(front: Front, way: str) -> None:
    told(front)
    headers, body = H2[way]
    with front.connect(protocols=("h2",)) as connection:
        connection.settimeout(1)
        h2.ask(connection, headers, body)
    heard = told(front)
    assert len(heard) <= 1
    for each in heard:
        assert each["path"] == "/carrier"
        names = dict(map(tuple, each["headers"]))
        assert names["host"] == NAME
        assert not {"x-smuggled", "transfer-encoding", "connection", "upgrade"} & {*names} - {"connection"}, names
        assert names.get("content-length", "0") == str(len(each["body"]))
    unharmed(front)


# --- smuggling: from the app back to clients -------------------------------------------------------------


@pytest.mark.long
def test_an_answer_never_becomes_that_of_somebody_else(front: Front) -> None:
    for kind in ("value", "name", "both", "204", "short", "long", "early"):
        answers: list[bytes] = []
        for _ in range(3):
            data = f"GET /split?kind={kind} HTTP/1.1\r\nHost: {NAME}\r\n\r\n"
            answers.append(send(front, data.encode(), 1))
        for answer in answers:
            assert b"X-C:" not in answer, (kind, answer)
        unharmed(front)


# --- paths ----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_no_path_leads_to_the_internal_app_or_to_a_file(front: Front) -> None:
    told(front)
    paths = (
        *("/status", "/raise", "/verify", "//status", "/./status", "/x/../status", "/%2e%2e/status", "/..;/status"),
        *("/run/booty/internal.sock", "/..%2f..%2fetc%2fpasswd", "/../../../etc/passwd", "/%c0%ae%c0%ae/etc/passwd"),
        *("/.booty/closed_text", "/.booty/closed_json", "/.booty/closed_", "/.BOOTY/closed_text", "/@last", "/@files"),
        *("/.well-known/acme-challenge/x", "/.well-known/acme-challenge/../../../etc/passwd", "/nginx_status"),
        *("unix:/run/booty/internal.sock:/status", "http://unix:/run/booty/internal.sock:/status", "*", "status"),
        *("/%00", "/a%00b", "/\\..\\..\\etc\\passwd", "/status%0a", "/status#x", "/status?x", f"http://{NAME}/status"),
    )
    for path in paths:
        for method in ("GET", "POST", "OPTIONS"):
            status, _, body = front.ask(f"{method} {path}")
            assert status in {200, 400, 404, 405, 421}, (method, path, status)
            if status == 200:  # the public app's own answer
                assert "client" in json.loads(body), (method, path, body)
            assert b"root:" not in body
    assert not any("raised on purpose" in each["body"] for each in told(front))
    assert front.run("journalctl -t booty --grep 'raised on purpose' --quiet --lines=1 || true") == ""


# --- slow and large -------------------------------------------------------------------------------------


@pytest.mark.long
def test_two_thousand_slow_clients_beside_a_good_one(front: Front) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    context = ssl.create_default_context(cafile=str(front.ca.root))
    stop = threading.Event()
    slow: list[socket.socket] = []

    def drip() -> None:
        """Send another byte of each head now and then."""
        while not stop.wait(2):
            for connection in slow[: len(slow) // 2]:
                with suppress(OSError):
                    connection.send(b"x")

    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        stack.callback(stop.set)
        for number in range(2000):
            port = 80 if number % 4 < 2 else 443
            connection = stack.enter_context(socket.create_connection((front.host.address, port), timeout=10))
            if number % 4 == 0:
                connection.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
            elif number % 100 == 3:  # half a body, which nginx keeps from the app
                secure = stack.enter_context(context.wrap_socket(connection, server_hostname=NAME))
                secure.sendall(f"POST /size HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 100\r\n\r\nx".encode())
            slow.append(connection)
        thread = threading.Thread(target=drip)
        thread.start()
        stack.callback(thread.join)
        times = []
        until = time.monotonic() + 20
        while time.monotonic() < until:
            began = time.monotonic()
            status, _, _ = front.ask("GET /victim")
            assert status == 200
            times.append(time.monotonic() - began)
        stop.set()
        # nginx closed connections with incomplete heads or handshakes after 15 s. Bodies may go on.
        ended = 0
        for connection in slow[::50]:
            connection.settimeout(0.1)
            with suppress(OSError):
                ended += connection.recv(1) == b""
        assert ended > 20
    assert sorted(times)[int(len(times) * 0.99)] < 2
    assert int(front.run("ss -Hx | grep -c booty-http || true")) < 50


@pytest.mark.long
def test_oversized_heads(front: Front) -> None:
    told(front)
    many = "".join(f"X-{number}: {'a' * 1000}\r\n" for number in range(100))
    for request, statuses in (
        (f"GET /{'a' * 100_000} HTTP/1.1\r\nHost: {NAME}\r\n\r\n", {414}),
        (f"GET / HTTP/1.1\r\nHost: {NAME}\r\nX: {'a' * 100_000}\r\n\r\n", {400, 431}),
        (f"GET / HTTP/1.1\r\nHost: {NAME}\r\n{many}\r\n", {400, 431}),
        (f"GET / HTTP/1.1\r\nHost: {NAME}\r\nCookie: {'a=b; ' * 20_000}\r\n\r\n", {400, 431}),
    ):  # fmt: skip
        # nginx closes at once, and a reset for the rest of the head may overtake its answer.
        answer = next(filter(None, (send(front, request.encode()) for _ in range(5))))
        assert int(answer.split()[1]) in statuses, answer[:200]
    assert told(front) == []
    # The runner accepts heads of every size that nginx accepts.
    lines = "".join(f"X-{number}: {'a' * 15_000}\r\n" for number in range(4))
    assert front.ask(f"GET /large\r\n{lines}")[0] == 200
    with front.connect(protocols=("h2",)) as connection:
        assert h2.ask(connection, [*get(b"/h2"), (b"x", b"a" * 15_000)]).status == 200
    unharmed(front)


@pytest.mark.long
def test_oversized_bodies(front: Front) -> None:
    told(front)
    limit = 10 * 1024**2
    for head in (f"Content-Length: {limit + 1}\r\n", "Content-Length: 99999999999999\r\n"):
        answer = send(front, f"POST /size HTTP/1.1\r\nHost: {NAME}\r\n{head}\r\n".encode())
        assert b" 413 " in answer
        assert b"10m (app_body_max)" in answer
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with front.connect() as connection:
        connection.sendall(f"POST /size HTTP/1.1\r\nHost: {NAME}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        with suppress(OSError):
            for _ in range(limit // 0x10000 + 10):
                connection.sendall(chunk)
        answer = b""
        with suppress(OSError):
            answer = connection.recv(65536)
    assert b" 413 " in answer
    with front.connect(protocols=("h2",)) as connection:
        headers = [*get(b"/size", b"POST"), (b"content-length", b"%d" % (limit + 1))]
        assert h2.ask(connection, headers, end=False).status == 413
    assert told(front) == []


@pytest.mark.long
def test_an_upload_that_is_larger_than_the_memory(front: Front) -> None:
    """The service has 120 MB, and the upload 400 MB: nginx keeps it on its disk, and the app reads it in parts."""
    front.good("deploy.yml", app_body_max="500m", app_memory_max="120M")
    front.settle()
    size = 400 * 1024**2
    with front.connect() as connection:
        connection.settimeout(120)
        connection.sendall(f"POST /size HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {size}\r\n\r\n".encode())
        part = b"x" * 1024**2
        for _ in range(size // len(part)):
            connection.sendall(part)
        answer = connection.recv(65536)
    assert b" 200 " in answer, answer
    assert b'{"size":%d}' % size in answer
    peak = int(front.run("cat /sys/fs/cgroup/system.slice/system-booty.slice/memory.peak 2>/dev/null || echo 0"))
    assert peak <= 120 * 1024**2
    assert front.run("find /var/cache/booty-front/body -type f | wc -l") == "0"
    front.good("deploy.yml")
    front.settle()


@pytest.mark.long
def test_the_host_is_as_before(front: Front) -> None:
    """None of these attacks ended a process of the service or of nginx."""
    assert front.run("systemctl show booty.service --property=NRestarts --value") == "0"
    assert len(front.instances()) == 1
    status, _, body = front.ask("GET /victim")
    assert status == 200
    assert json.loads(body)["path"] == "/victim"
