from fastapi import FastAPI

from tally import GREETING

app = FastAPI()


@app.get("/")
def greet() -> dict[str, str]:
    return {"greeting": GREETING}


@app.get("/boom")
def boom() -> None:
    raise RuntimeError("boom")


@app.get("/livez")
def live() -> dict[str, bool]:
    return {"ok": True}
