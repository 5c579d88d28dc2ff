from flask import Flask

GREETING = "first"


def create_app() -> Flask:
    app = Flask(__name__)

    @app.get("/")
    def greet() -> dict[str, str]:
        return {"greeting": GREETING}

    @app.get("/boom")
    def boom() -> str:
        raise RuntimeError("boom")

    return app
