"""The app with routes that fail."""

import logging

from fastapi import BackgroundTasks, FastAPI, HTTPException
from fastapi.responses import StreamingResponse

from booty.main import create_app


def make_app() -> FastAPI:
    app = create_app()
    app.get("/items/{number}")(fail)
    app.get("/sync/{number}")(fail_in_thread)
    app.get("/http/{status}")(fail_http)
    app.get("/logged")(fail_logged)
    app.get("/background")(fail_in_background)
    app.get("/stream")(fail_in_stream)
    return app


async def fail(number: int):
    raise LookupError(number)


def fail_in_thread(number: int):
    raise LookupError(number)


async def fail_http(status: int):
    raise HTTPException(status)


async def fail_logged():
    try:
        raise ValueError("seen")
    except ValueError:
        logging.getLogger("shop").exception("went wrong")


async def fail_in_background(tasks: BackgroundTasks):
    tasks.add_task(fail, 1)


async def fail_in_stream():
    async def body():
        yield b"begun"
        raise LookupError(1)

    return StreamingResponse(body())
