"""Run the service with routes that only tests need, on descriptors put where systemd puts them."""

import asyncio
import fcntl
import json
import os
import sys
import time

from fastapi import HTTPException

from booty import routes
from booty.__main__ import main


@routes.router.get("/slow")
async def slow(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"


@routes.router.get("/blocked")
def blocked(seconds: float) -> str:
    time.sleep(seconds)
    return "done"


@routes.router.get("/fail/{reason}")
async def fail(reason: str) -> None:
    raise LookupError(reason)


@routes.router.get("/unavailable")
async def unavailable() -> None:
    raise HTTPException(503, "not now")


if os.environ.pop("TEST_BROKEN_STARTUP", None):

    async def broken_startup() -> None:
        raise ConnectionError("the database is away")

    routes.router.on_startup.append(broken_startup)

if os.environ.pop("TEST_BROKEN_SHUTDOWN", None):

    async def broken_shutdown() -> None:
        raise ConnectionError("the database was away")

    routes.router.on_shutdown.append(broken_shutdown)

if __name__ == "__main__":
    fds = json.loads(os.environ.pop("TEST_FDS"))
    for number, fd in enumerate([fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in fds], start=3):
        os.dup2(fd, number)
    os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(fds))}
    sys.exit(main())
