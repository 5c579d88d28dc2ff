import os

import sentry_sdk
from fastapi import FastAPI

sentry_sdk.init(
    dsn=os.environ.get("SENTRY_DSN"),
    release="shop@2.1.0",
    environment=os.environ.get("APP_ENV", "development"),
)
GREETING = "first"
app = FastAPI()


@app.get("/")
async def greet():
    return {"greeting": GREETING}


@app.get("/boom")
async def boom():
    raise RuntimeError("boom")
