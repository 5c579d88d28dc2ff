"""A WSGI app and an ASGI app without a framework, for what PEP 3333 and RFC 6455 ask of a server."""

import asyncio
import contextvars
import json
import logging
import os
import sys
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs

seen = contextvars.ContextVar("seen", default="nothing")
log = logging.getLogger("shop")


def note(*words):
    with Path(os.environ["TEST_NOTES"]).open("a") as file:
        print(*words, file=file, flush=True)


class Stream:
    """An endless response whose close() is noted."""

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


def wsgi(environ, start_response):
    query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    way, body = environ["PATH_INFO"], environ["wsgi.input"]
    plain = [("Content-Type", "text/plain")]
    match way:
        case "/environ":
            shown = {key: value for key, value in environ.items() if isinstance(value, (str, bool))}
            start_response("200 OK", plain)
            return [json.dumps(shown).encode()]
        case "/read":
            start_response("200 OK", plain)
            return [b"%d" % len(body.read())]
        case "/read/sum":
            total = 0
            while part := body.read(10_000):
                total += sum(part)
            start_response("200 OK", plain)
            return [b"%d" % total]
        case "/readline":
            start_response("200 OK", plain)
            return [json.dumps([len(body.readline(65536)), *map(len, body.readlines())]).encode()]
        case "/departure":
            try:
                body.read()
            except ConnectionResetError as error:
                note("reset", type(error).__name__)
                raise
        case "/stream":
            start_response("200 OK", plain)
            return Stream(query.get("name", ""), b"x" * int(query.get("size", "8")), float(query["seconds"]))
        case "/sleep":
            time.sleep(float(query["seconds"]))
            start_response("200 OK", plain)
            return [threading.current_thread().name.encode()]
        case "/exc_info/before":
            start_response("200 OK", plain)
            try:
                raise LookupError("before the body")
            except LookupError:
                start_response("503 Service Unavailable", plain, sys.exc_info())
            return [b"sorry"]
        case "/exc_info/after":

            def late():
                start_response("200 OK", plain)
                yield b"begun"
                time.sleep(0.1)
                try:
                    raise LookupError("after the body began")
                except LookupError:
                    start_response("503 Service Unavailable", plain, sys.exc_info())
                yield b"never"

            return late()
        case "/long":
            start_response("200 OK", [*plain, ("Content-Length", "4")])
            return iter([b"abc", b"def"])
        case "/short":
            start_response("200 OK", [*plain, ("Content-Length", "4")])
            return iter([b"abc"])
        case "/write":
            write = start_response("200 OK", plain)
            write(b"one ")
            write(b"two ")
            return [b"three"]
        case "/pieces":
            start_response("200 OK", plain)
            return iter([b"", b"one ", b"", b"two"])
        case "/empty":
            start_response("200 OK", plain)
            return []
        case "/none":
            start_response("304 Not Modified", [("Content-Length", "4"), ("ETag", '"a"')])
            return []
        case "/twice":
            start_response("200 OK", plain)
            start_response("200 OK", plain)
        case "/silent":
            return []
        case "/fail":
            raise LookupError("no such thing")
        case "/exit":
            sys.exit(4)
        case "/file":
            start_response("200 OK", plain)
            return environ["wsgi.file_wrapper"](Path(__file__).open("rb"))
        case "/errors":
            print("to the error stream", file=environ["wsgi.errors"])
        case "/context":
            before = seen.get()
            seen.set("a request")
            start_response("200 OK", plain)
            return [before.encode()]
    start_response("200 OK", plain)
    return [way.encode("latin-1")]


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
