import os
from pathlib import Path

from quart import Quart

GREETING = "first"
app = Quart(__name__)
os.makedirs(app.instance_path, exist_ok=True)
visits = Path(app.instance_path, "visits.txt")


@app.get("/")
async def greet():
    return {"greeting": GREETING}


@app.get("/visits")
async def visit():
    with visits.open("a") as file:
        file.write("visit\n")
    return {"visits": len(visits.read_text().splitlines())}


@app.get("/boom")
async def boom():
    raise RuntimeError("boom")
