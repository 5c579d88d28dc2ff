import time
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

GREETING = "first"
UPLOADS, DATA = Path("uploads"), Path("data")
UPLOADS.mkdir(exist_ok=True)
(DATA / "started.txt").write_text(time.ctime())


async def greet(request: Request) -> JSONResponse:
    rate = (DATA / "rate.txt").read_text().strip()
    return JSONResponse(
        {"greeting": GREETING, "rate": rate, "uploads": sorted(path.name for path in UPLOADS.iterdir())}
    )


async def upload(request: Request) -> JSONResponse:
    (UPLOADS / request.path_params["name"]).write_bytes(await request.body())
    return JSONResponse({"saved": True})


async def boom(request: Request) -> None:
    raise RuntimeError("boom")


async def health(request: Request) -> JSONResponse:
    return JSONResponse({"ok": True})


app = Starlette(
    routes=[
        Route("/", greet),
        Route("/upload/{name}", upload, methods=["POST"]),
        Route("/boom", boom),
        Route("/health", health),
    ]
)
