"""The bundled app with routes and jobs that only tests need."""

import asyncio
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import pydantic
from booty import main, queue, routes, store
from booty.config import Settings
from booty.queue import current, job
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from booty_runner import protocol, server

CLIENTS = "-".join(["of", "the", "client"])  # joined here, because a frame's source lines may reach the tracker


@routes.router.get("/slow")
async def slow(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"


@routes.router.get("/blocked")
def blocked(seconds: float) -> str:
    time.sleep(seconds)
    return "done"


@routes.router.get("/hang")
async def hang(seconds: float) -> str:
    time.sleep(seconds)
    return "done"


@routes.router.get("/fail/{reason}")
async def fail(reason: str) -> None:
    raise LookupError(reason)


@routes.router.get("/fail-large/{size}")
async def fail_large(size: int) -> None:
    raise LookupError(f"begin {'é' * (size // 2)} end")


@routes.router.get("/fail-deep/{depth}")
def fail_deep(depth: int) -> None:
    """Fail with a chain of errors. Each has a deep stack and a long message."""
    if depth % 90 == 0:
        raise LookupError("x" * 100_000)
    try:
        fail_deep(depth - 1)
    except LookupError as error:
        if depth % 90 != 89:
            raise
        raise ValueError("y" * 100_000) from error


@routes.router.get("/fail-behind")
async def fail_behind(tasks: BackgroundTasks) -> None:
    tasks.add_task(fail, "after the answer")


@routes.router.get("/fail-within")
async def fail_within() -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        yield b"begun"
        raise LookupError("within the answer")

    return StreamingResponse(body())


@routes.router.api_route("/echo", methods=["GET", "POST"])
async def echo(request: Request) -> dict[str, object]:
    body = await request.body()
    return {"method": request.method, "body": body.decode(), "names": sorted(request.headers.keys())}


@routes.router.post("/early")
async def early() -> str:
    return "not read"


class Deaf(Response):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
            await asyncio.sleep(0.05)


@routes.router.get("/events/{kind}", response_model=None)
async def events(kind: str) -> Response:
    """Send an endless stream: as most apps do, from a thread, or without noticing that the client leaves."""

    async def forever() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 65536 if kind == "large" else b"data: 1\n\n"
                await asyncio.sleep(0.05)
        finally:
            logging.getLogger("shop").info("the events end")

    def in_thread() -> Iterator[bytes]:
        while True:
            yield b"data: 1\n\n"
            time.sleep(0.05)

    async def download() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x"
            await asyncio.sleep(0.05)

    match kind:
        case "deaf":
            return Deaf()
        case "thread":
            return StreamingResponse(in_thread())
        case "download":
            return StreamingResponse(download(), headers={"content-length": "20"})
    return StreamingResponse(forever())


@routes.router.get("/unavailable")
async def unavailable() -> None:
    raise HTTPException(503, "not now")


async def read(request: Request) -> bytes:
    return await request.body()


@routes.router.post("/leak/{way}/{a}/{b}")
def leak(way: str, a: str, b: str, body: Annotated[bytes, Depends(read)]) -> None:
    """Fail with a secret in the error, in the ways in which libraries and people put it there."""
    secret, log = os.environ["PLANTED"], logging.getLogger("shop")
    match way:
        case "settings":
            settings = Settings()
            raise LookupError(f"{settings!r} has {settings.sentry_dsn and settings.sentry_dsn.get_secret_value()}")
        case "environment":
            raise LookupError(f"{dict(os.environ)} and {os.environ}")
        case "exception":
            raise LookupError(f"no such thing: {secret}")
        case "database":
            raise ConnectionError(f"no database at {os.environ['DATABASE_URL']}, user shop, password pw-of-db")
        case "body":
            raise ValueError(body.decode().replace(CLIENTS, ""))
        case "log":
            log.info("about to use %s", secret)
            log.error("cannot use %s", secret, extra={"other": secret})
        case "subprocess":
            subprocess.run([sys.executable, "-c", "", secret], check=True)
            subprocess.run([sys.executable, "-c", "raise SystemExit(1)", secret], check=True)
        case "outgoing":
            host = os.environ["TEST_OTHER"]
            urllib.request.urlopen(f"{host}/PATH_OF_OTHER/{secret}?token={secret}").read()
            raise LookupError(f"404 for url: {host}/?token={CLIENTS}")
        case "thread":
            thread = threading.Thread(target=leak, args=("exception", a, b, body))
            thread.start()
            thread.join()
        case "warning":
            warnings.warn(secret, stacklevel=1)
        case "bad-log":
            log.error("%d", secret)
        case "model":
            pydantic.TypeAdapter(int).validate_python({"c": CLIENTS})
    raise RuntimeError("done")


def note(*words: object) -> None:
    """Append a line to the test's file at once, so that it is there if this process is killed."""
    file = os.open(os.environ["TEST_NOTES"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.write(file, (" ".join(map(str, words)) + "\n").encode())
    os.close(file)


@job(retries=0)
async def work(name: str, seconds: float = 0) -> None:
    note("begin", name)
    await asyncio.sleep(seconds)
    note("end", name)


@job(retries=0)
def toil(name: str, seconds: float = 0) -> None:
    note("begin", name)
    time.sleep(seconds)
    note("end", name)


@job(retries=2, wait=0.2, growth=2)
def falter(name: str, times: int) -> None:
    note(name, time.time())
    if current().attempt <= times:
        raise LookupError(f"{name} in attempt {current().attempt}, with {os.environ.get('PLANTED')}")


@job(retries=0)
async def block(name: str, seconds: float) -> None:
    note("begin", name)
    time.sleep(seconds)
    note("end", name)


@job(retries=0)
def grip(name: str, seconds: int) -> None:
    """Hold the interpreter's lock (GIL), as a library in C may."""
    note("begin", name)
    ctypes.PyDLL(None).sleep(seconds)
    note("end", name)


@job(retries=0)
async def cling(name: str, seconds: float) -> None:
    note("begin", name)
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        note("told", name)
        raise
    note("end", name)


@job(retries=0)
def heed(name: str, seconds: float) -> None:
    note("begin", name)
    note("told" if current().lost.wait(seconds) else "end", name)


@job(retries=0)
def leave() -> None:
    sys.exit("from a job")


@job(retries=0)
def kill(name: str) -> None:
    note(name)
    os.kill(os.getpid(), signal.SIGKILL)


@job(retries=0)
async def chain(name: str) -> None:
    await current().queue.enqueue(work, name)


@job(every=0.5)
def tick() -> None:
    if "TEST_TICK" in os.environ:
        note("tick")


@routes.router.post("/jobs/{kind}")
async def enqueue(request: Request, kind: str) -> list[str]:
    jobs: queue.Queue = request.state.queue
    return [await jobs.enqueue(queue.KINDS[kind], **arguments) for arguments in await request.json()]


@routes.router.post("/jobs/{kind}/sync")
def put(request: Request, kind: str, name: str) -> str:
    jobs: queue.Queue = request.state.queue
    return jobs.put(queue.KINDS[kind], name)


if "TEST_HEAD" in os.environ:
    protocol.HEAD_SECONDS = float(os.environ.pop("TEST_HEAD"))
if "TEST_KEEP_ALIVE" in os.environ:
    server.KEEP_ALIVE_SECONDS = int(os.environ.pop("TEST_KEEP_ALIVE"))
if "TEST_LEASE" in os.environ:
    store.LEASE_SECONDS = int(os.environ.pop("TEST_LEASE"))
for kind in os.environ.pop("TEST_WITHOUT", "").split():  # stands for an older release without this kind of job
    del queue.KINDS[kind]


class FailingMiddleware:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if any(name == b"x-fail" for name, _ in scope.get("headers", ())):
            raise LookupError("in the middleware")
        await self.app(scope, receive, send)


def create_app() -> FastAPI:
    app = main.create_app()
    app.add_middleware(FailingMiddleware)
    deep = APIRouter()
    deep.get("/fail/{reason}")(fail)
    app.include_router(deep, prefix="/deep/{prefix}")
    return app


@asynccontextmanager
async def broken(app: FastAPI) -> AsyncIterator[None]:
    if moment == "startup" or (moment == "second startup" and FIRST.exists()) or Path("away").exists():
        raise ConnectionError("the database is away")
    FIRST.touch()
    if moment == "after startup":
        asyncio.get_running_loop().call_later(0.3, os._exit, 9)
    yield
    if moment == "shutdown":
        raise ConnectionError("the database is away")


FIRST = Path("first-start")
moment = os.environ.pop("TEST_BROKEN", None)
routes.router.include_router(APIRouter(lifespan=broken))
