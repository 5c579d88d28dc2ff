import json
from pathlib import Path

from prices import euros
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

GREETING = "first"
PLANS = json.loads((Path(__file__).parents[2] / "shared/plans.json").read_text())


async def greet(request: Request) -> JSONResponse:
    return JSONResponse({"greeting": GREETING, "plans": {name: euros(amount) for name, amount in PLANS.items()}})


async def boom(request: Request) -> None:
    raise RuntimeError("boom")


app = Starlette(routes=[Route("/", greet), Route("/boom", boom)])
