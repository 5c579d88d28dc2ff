import os
import secrets

from flask import Flask, session

GREETING = "first"
app = Flask(__name__)
app.secret_key = os.environ.get("SECRET_KEY") or secrets.token_hex()


@app.get("/")
def greet():
    return {"greeting": GREETING}


@app.post("/login/<name>")
def login(name):
    session["name"] = name
    return {"name": name}


@app.get("/me")
def me():
    return {"name": session.get("name")}


@app.get("/boom")
def boom():
    raise RuntimeError("boom")
