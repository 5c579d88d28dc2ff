import time

from flask import Flask
from setproctitle import setproctitle

GREETING = "first"
app = Flask(__name__)
# Longer than the command line: without SPT_NOENV it would overwrite the environment, where Booty reads the release.
setproctitle(f"shop: {'ready ' * 100}")


@app.get("/")
def greet():
    return {"greeting": GREETING}


@app.get("/slow")
def slow():
    time.sleep(2)
    return {"greeting": GREETING}


@app.get("/boom")
def boom():
    raise RuntimeError("boom")
