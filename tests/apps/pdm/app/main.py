from fastapi import FastAPI

GREETING = "first"
app = FastAPI()


@app.get("/")
async def greet() -> dict[str, str]:
    return {"greeting": GREETING}


@app.get("/boom")
async def boom() -> None:
    raise RuntimeError("boom")
