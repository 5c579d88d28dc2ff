from flask import Flask

GREETING = "first"
app = Flask(__name__)


@app.route("/")
def greet():
    return {"greeting": GREETING}


@app.route("/boom")
def boom():
    raise RuntimeError("boom")
