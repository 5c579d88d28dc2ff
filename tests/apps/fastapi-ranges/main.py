import asyncio
import os

from fastapi import FastAPI

GREETING = "first"
app = FastAPI(title="Greetings")


@app.get("/")
async def greet():
    return {"greeting": GREETING, "currency": os.environ.get("CURRENCY", "none")}


@app.get("/slow")
async def slow():
    await asyncio.sleep(2)
    return {"greeting": GREETING}


@app.get("/boom")
async def boom():
    raise RuntimeError("boom")


@app.get("/healthz")
async def healthz():
    return {"ok": True}
