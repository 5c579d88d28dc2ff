"""Unchanged apps of real frameworks, which are installed once a session from the package index."""

import json
import os
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path

import pytest
from runner.tests.clients import ask
from runner.tests.conftest import SRC
from runner.tests.test_websocket import url
from websockets.sync.client import connect

pytestmark = pytest.mark.long
PACKAGES = ["flask==3.1.3", "django==5.2.19", "channels==4.3.2", "quart==0.22.0", "litestar==2.25.0"]


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Return a folder with the frameworks. uv takes from its cache what it has downloaded before."""
    site = tmp_path_factory.mktemp("site")
    uv = Path(sys.executable).with_name("uv")
    install = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", site, *PACKAGES]
    subprocess.run(install, check=True, timeout=300)
    return site


@pytest.fixture
def serve(start, tcp, site, tmp_path):
    def serve(code, app="shop:app", **settings):
        (tmp_path / "shop.py").write_text(code)
        settings = {"PYTHONPATH": f"{SRC}:{site}", "PATH": os.environ["PATH"], **settings}
        return start(sockets=[tcp], app=app, **settings)

    return serve


FLASK = """
import flask
app = flask.Flask(__name__)

@app.get("/health")
def health():
    return {"url": flask.request.url, "client": flask.request.remote_addr}

@app.post("/form")
def form():
    return {"fields": flask.request.form, "files": {k: len(f.read()) for k, f in flask.request.files.items()}}

@app.get("/stream")
def stream():
    return flask.Response(f"{n}," for n in range(5))

@app.get("/file")
def file():
    return flask.send_file(__file__)

@app.get("/fail")
def fail():
    raise LookupError("no such thing")
"""


def test_flask(serve, tcp, tmp_path):
    service = serve(FLASK, BOOTY_TRUSTED_PROXIES="127.0.0.1").ready()
    forwarded = {"x-forwarded-for": "1.2.3.4", "x-forwarded-proto": "https"}
    assert json.loads(ask(tcp, "/health", **forwarded)[2]) == {"url": "https://test/health", "client": "1.2.3.4"}
    assert ask(tcp, "/stream")[2] == b"0,1,2,3,4,"
    status, headers, body = ask(tcp, "/file")
    assert (status, body) == (200, (tmp_path / "shop.py").read_bytes())
    assert ask(tcp, "/file", **{"if-none-match": headers["etag"]})[0] == 304
    assert ask(tcp, "/fail")[0] == 500
    service.stop()
    status, stderr = service.wait()
    assert status == 0
    assert stderr.count("LookupError: no such thing") == 1


def test_a_form_with_a_large_file(serve, tcp):
    serve(FLASK).ready()
    size = 3_000_000
    part = '--b\r\ncontent-disposition: form-data; name="{}"{}\r\n\r\n'
    body = part.format("name", "").encode() + b"tea\r\n" + part.format("photo", '; filename="a.png"').encode()
    body += b"x" * size + b"\r\n--b--\r\n"
    kind = "multipart/form-data; boundary=b"

    for chunked in (False, True):
        connection = HTTPConnection(*tcp.getsockname())
        sent = iter([body[:1000], body[1000:]]) if chunked else body
        connection.request("POST", "/form", sent, {"content-type": kind}, encode_chunked=chunked)
        assert json.loads(connection.getresponse().read()) == {"fields": {"name": "tea"}, "files": {"photo": size}}
        connection.close()


DJANGO = """
import os
from django.conf import settings
settings.configure(
    SECRET_KEY="a", ROOT_URLCONF=__name__, ALLOWED_HOSTS=["shop.example"], LOGGING_CONFIG="logging.config.dictConfig",
    MIDDLEWARE=["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"],
    SECURE_SSL_REDIRECT="TEST_HTTPS" in os.environ,
    SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https") if os.environ.get("TEST_HTTPS") == "known" else None,
)
import django
django.setup()
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse
from django.urls import path

def health(request):
    if "TEST_FAIL" in os.environ:
        raise LookupError("no such table: shop")
    return JsonResponse({"scheme": request.scheme})

urlpatterns = [path("health", health)]
app = get_wsgi_application()
asgi = get_asgi_application()
"""


@pytest.mark.parametrize("app", ["shop:app", "shop:asgi"])
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"BOOTY_HEALTH_HOST": "shop.example"}, None),
        (
            {},
            "answers 400 Bad Request; if the app checks the Host header (Django's ALLOWED_HOSTS), set app_health_host",
        ),
        ({"BOOTY_HEALTH_HOST": "shop.example", "TEST_HTTPS": "known"}, None),
        ({"BOOTY_HEALTH_HOST": "shop.example", "TEST_HTTPS": "unknown"}, "the app wants HTTPS"),
        ({"BOOTY_HEALTH_HOST": "shop.example", "TEST_FAIL": "1"}, "answers 500 Internal Server Error"),
        ({"BOOTY_HEALTH_HOST": "shop.example", "BOOTY_HEALTH_PATH": "/no"}, "set app_health_path to a path that the"),
    ],
)
def test_django(serve, tcp, app, settings, words):
    service = serve(DJANGO, app, **settings)
    if words:
        status, stderr = service.wait()
        assert status == 1
        assert words in stderr.splitlines()[-1]
        assert ("LookupError: no such table: shop" in stderr) == ("TEST_FAIL" in settings)
        return
    service.ready()
    assert ask(tcp, "/health", **{"x-forwarded-proto": "https"})[0] == 400  # the test's Host is not in ALLOWED_HOSTS
    service.stop()
    status, stderr = service.wait()
    assert status == 0
    assert "lifespan" not in stderr


CHANNELS = (
    DJANGO
    + """
from channels.generic.websocket import WebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter

class Echo(WebsocketConsumer):
    def receive(self, text_data=None, bytes_data=None):
        self.send(text_data)

router = ProtocolTypeRouter({"http": asgi, "websocket": URLRouter([path("echo", Echo.as_asgi())])})
"""
)


def test_channels(serve, tcp):
    service = serve(CHANNELS, "shop:router", BOOTY_HEALTH_HOST="shop.example").ready()
    with connect(url(tcp, "/echo")) as client:
        client.send("tea")
        assert client.recv() == "tea"
    service.stop()
    status, stderr = service.wait()
    assert status == 0
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    "code",
    [
        "import quart\napp = quart.Quart(__name__)\n"
        "@app.get('/health')\nasync def health():\n    return 'fine'\n"
        "@app.websocket('/echo')\nasync def echo():\n"
        "    while True:\n        await quart.websocket.send(await quart.websocket.receive())\n",
        "import litestar\n@litestar.get('/health')\nasync def health() -> str:\n    return 'fine'\n"
        "@litestar.websocket('/echo')\nasync def echo(socket: litestar.WebSocket) -> None:\n"
        "    await socket.accept()\n    while True:\n        await socket.send_text(await socket.receive_text())\n"
        "app = litestar.Litestar([health, echo])\n",
    ],
    ids=["quart", "litestar"],
)
def test_asgi_frameworks(serve, tcp, code):
    service = serve(code).ready()
    assert ask(tcp, "/health")[2] == b"fine"
    with connect(url(tcp, "/echo")) as client:
        client.send("tea")
        assert client.recv() == "tea"
        service.stop()
    status, stderr = service.wait()
    assert status == 0, stderr
