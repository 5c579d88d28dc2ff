import os

import sentry_sdk
from fastapi import FastAPI

sentry_sdk.init(
    dsn=os.environ.get("SENTRY_DSN"),
    release="shop@2.1.0",
    include_local_variables=False,  # SDK 1.x can not copy those of Python 3.13
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
