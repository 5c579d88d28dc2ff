"""A WSGI app and an ASGI app without a framework, for the rules of PEP 3333 and RFC 6455."""

import asyncio
import contextvars
import json
import os
import sys
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs

seen = contextvars.ContextVar("seen", default="nothing")


def note(*words):
    with Path(os.environ["TEST_NOTES"]).open("a") as file:
        print(*words, file=file, flush=True)


class Stream:
    """An endless response that notes the call of its close()."""

    def __init__(self, name, piece, seconds):
        self.name, self.piece, self.seconds, self.count = name, piece, seconds, 0

    def __iter__(self):
        return self

    def __next__(self):
        time.sleep(self.seconds)
        self.count += 1
        return self.piece

    def close(self):
        note("closed", self.name, self.count)


PLAIN = [("Content-Type", "text/plain")]
ROUTES = {}


def route(path):
    return lambda function: ROUTES.setdefault(path, function)


def wsgi(environ, start_response):
    query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    return ROUTES.get(environ["PATH_INFO"], path)(environ, start_response, **query)


def path(environ, start_response):
    start_response("200 OK", PLAIN)
    return [environ["PATH_INFO"].encode("latin-1")]


@route("/environ")
def show(environ, start_response, **_):
    shown = {key: value for key, value in environ.items() if isinstance(value, (str, bool))}
    start_response("200 OK", PLAIN)
    return [json.dumps(shown).encode()]


@route("/read")
def read(environ, start_response):
    start_response("200 OK", PLAIN)
    return [b"%d" % len(environ["wsgi.input"].read())]


@route("/read/sum")
def read_parts(environ, start_response):
    total = 0
    while part := environ["wsgi.input"].read(10_000):
        total += sum(part)
    start_response("200 OK", PLAIN)
    return [b"%d" % total]


@route("/readline")
def read_lines(environ, start_response):
    start_response("200 OK", PLAIN)
    lines = environ["wsgi.input"]
    return [json.dumps([len(lines.readline(65536)), *map(len, lines.readlines())]).encode()]


@route("/departure")
def see_the_client_leave(environ, start_response):
    try:
        environ["wsgi.input"].read()
    except ConnectionResetError as error:
        note("reset", type(error).__name__)
        raise


@route("/stream")
def stream(environ, start_response, seconds, size="8", name=""):
    start_response("200 OK", PLAIN)
    return Stream(name, b"x" * int(size), float(seconds))


@route("/sleep")
def sleep(environ, start_response, seconds):
    time.sleep(float(seconds))
    start_response("200 OK", PLAIN)
    return [threading.current_thread().name.encode()]


@route("/exc_info/before")
def fail_early(environ, start_response):
    start_response("200 OK", PLAIN)
    try:
        raise LookupError("before the body")
    except LookupError:
        start_response("503 Service Unavailable", PLAIN, sys.exc_info())
    return [b"sorry"]


@route("/exc_info/after")
def fail_late(environ, start_response):
    start_response("200 OK", PLAIN)
    yield b"begun"
    time.sleep(0.1)
    try:
        raise LookupError("after the body began")
    except LookupError:
        start_response("503 Service Unavailable", PLAIN, sys.exc_info())
    yield b"never"


@route("/long")
def too_long(environ, start_response):
    start_response("200 OK", [*PLAIN, ("Content-Length", "4")])
    return iter([b"abc", b"def"])


@route("/short")
def too_short(environ, start_response):
    start_response("200 OK", [*PLAIN, ("Content-Length", "4")])
    return iter([b"abc"])


@route("/wrong")
def wrong(environ, start_response, status="200 OK", name="X-Test", value="1", body="text"):
    start_response(status, [*PLAIN, (name, int(value) if value == "7" else value)])
    return [body] if body == "str" else iter([body]) if body == "strs" else [body.encode()]


@route("/write")
def write(environ, start_response):
    send = start_response("200 OK", PLAIN)
    send(b"one ")
    send(b"two ")
    return [b"three"]


@route("/pieces")
def pieces(environ, start_response):
    start_response("200 OK", PLAIN)
    return iter([b"", b"one ", b"", b"two"])


@route("/empty")
def empty(environ, start_response):
    start_response("200 OK", PLAIN)
    return []


@route("/none")
def not_modified(environ, start_response):
    start_response("304 Not Modified", [("Content-Length", "4"), ("ETag", '"a"')])
    return []


@route("/twice")
def start_twice(environ, start_response):
    start_response("200 OK", PLAIN)
    start_response("200 OK", PLAIN)


@route("/silent")
def start_never(environ, start_response):
    return []


@route("/fail")
def fail(environ, start_response):
    raise LookupError("no such thing")


@route("/exit")
def leave(environ, start_response):
    sys.exit(4)


@route("/file")
def file(environ, start_response):
    start_response("200 OK", PLAIN)
    return environ["wsgi.file_wrapper"](Path(__file__).open("rb"))


@route("/errors")
def complain(environ, start_response):
    print("to the error stream", file=environ["wsgi.errors"])
    return path(environ, start_response)


@route("/context")
def context(environ, start_response):
    before = seen.get()
    seen.set("a request")
    start_response("200 OK", PLAIN)
    return [before.encode()]


async def asgi(scope, receive, send):
    """Note each WebSocket message after `seconds`, and echo it if asked to; over HTTP, answer with the scope."""
    if scope["type"] == "lifespan":
        return
    if scope["type"] == "http":
        shown = {key: scope[key] for key in ("client", "scheme", "path")}
        shown["headers"] = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(shown).encode()})
        return
    query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
    assert (await receive())["type"] == "websocket.connect"
    await asyncio.sleep(float(query.get("accept", "0")))
    if scope["path"] == "/refuse":
        await send({"type": "websocket.close"})
        return
    await send({"type": "websocket.accept"})
    count = 0
    while (message := await receive())["type"] == "websocket.receive":
        await asyncio.sleep(float(query.get("seconds", "0")))
        count += 1
        if "echo" in query:
            await send({"type": "websocket.send", "text": message.get("text") or str(len(message["bytes"]))})
        if message.get("text") == "scope":
            await send({"type": "websocket.send", "text": json.dumps([scope["client"], scope["scheme"]])})
    note("got", query.get("name", ""), count, message["code"])


def make():
    return wsgi


def takes(config):
    return wsgi


async def make_async():
    return wsgi


def asgi2(scope):
    async def instance(receive, send):
        await asgi(scope, receive, send)

    return instance
