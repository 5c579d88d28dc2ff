from litestar import Litestar, get

GREETING = "first"


@get("/")
async def greet() -> dict[str, str]:
    return {"greeting": GREETING}


@get("/boom")
async def boom() -> None:
    raise RuntimeError("boom")


@get("/health")
async def health() -> str:
    return "fine"


def create_app() -> Litestar:
    return Litestar([greet, boom, health])
