import time

from flask import Flask

GREETING = "first"
app = Flask(__name__)


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
