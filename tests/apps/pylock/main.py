from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

GREETING = "first"


async def greet(request: Request) -> JSONResponse:
    return JSONResponse({"greeting": GREETING})


async def boom(request: Request) -> None:
    raise RuntimeError("boom")


app = Starlette(routes=[Route("/", greet), Route("/boom", boom)])
