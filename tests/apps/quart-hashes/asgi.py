from quart import Quart

GREETING = "first"
app = Quart(__name__)


@app.get("/")
async def greet():
    return {"greeting": GREETING}


@app.get("/boom")
async def boom():
    raise RuntimeError("boom")
