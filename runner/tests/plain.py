"""An ASGI app without a framework. TEST_LIFESPAN says how its lifespan behaves, TEST_IMPORT how its import does."""

import asyncio
import json
import os
import sys

import booty_runner

KIND = os.environ.get("TEST_LIFESPAN", "none")


class Stop(BaseException):
    pass


match os.environ.get("TEST_IMPORT"):
    case "leaves":
        sys.exit(0)
    case "leaves with a message":
        sys.exit("no database")
    case "refuses":
        sys.exit(1)
    case "stops":
        raise Stop("here")
    case "closes":
        os.closerange(3, 100)
    case "reopens":
        os.closerange(3, 100)
        files = [open(os.devnull) for _ in range(9)]  # noqa: SIM115


async def note(*words):
    await asyncio.sleep(0)
    print(*words, flush=True, file=open(os.environ["TEST_NOTES"], "a"))  # noqa: SIM115


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    body = {"path": scope["path"], "state": dict(scope["state"])}
    scope["state"]["changed"] = True
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


async def lifespan(scope, receive, send):
    if KIND == "raises before":
        raise NotImplementedError("HTTP only")
    if KIND in {"none", "returns before"}:
        return
    assert (await receive())["type"] == "lifespan.startup"
    if KIND == "raises":
        raise ConnectionError("the database is away")
    if KIND == "says that it failed":
        await send({"type": "lifespan.startup.failed", "message": "no database"})
        return
    if KIND == "refuses":
        raise SystemExit(1)
    if KIND == "leaves":
        sys.exit(0)
    scope["state"]["pool"] = "open"
    booty_runner.on_ready(lambda state: print("ready", state, flush=True, file=open(os.environ["TEST_NOTES"], "a")))  # noqa: SIM115
    booty_runner.on_drain(drain)
    booty_runner.add_command("stock", stock)
    booty_runner.add_status("stock", stock)
    await send({"type": "lifespan.startup.complete"})
    if KIND == "ends by itself":
        await asyncio.sleep(0.3)
        return
    if KIND == "dies by itself":
        await asyncio.sleep(0.3)
        raise ConnectionError("the database is away")
    assert (await receive())["type"] == "lifespan.shutdown"
    await note("shutdown")
    if KIND == "fails at the end":
        await send({"type": "lifespan.shutdown.failed", "message": "no flush"})
        return
    await send({"type": "lifespan.shutdown.complete"})


async def drain(begun):
    await note("drain")
    await asyncio.sleep(0.2)
    await note("drained", begun.cut.is_set())


async def stock(of="tea"):
    if of == "gold":
        raise booty_runner.CommandError("no gold is sold")
    return {"stock": of, "text": f"{of}: 3", "ok": of != "milk"}
