import os
import time
from pathlib import Path

from flask import Flask
from setproctitle import setproctitle

GREETING = "first"
app = Flask(__name__)
# As in Flask's tutorial: beside this file, and Flask-SQLAlchemy puts sqlite:///shop.db there.
os.makedirs(app.instance_path, exist_ok=True)
visits = Path(app.instance_path, "visits.txt")
# Longer than the command line: without SPT_NOENV it would overwrite the environment, where Booty reads the release.
setproctitle(f"shop: {'ready ' * 100}")


@app.get("/")
def greet():
    return {"greeting": GREETING}


@app.get("/visits")
def visit():
    with visits.open("a") as file:
        file.write("visit\n")
    return {"visits": len(visits.read_text().splitlines())}


@app.get("/slow")
def slow():
    time.sleep(2)
    return {"greeting": GREETING}


@app.get("/boom")
def boom():
    raise RuntimeError("boom")
