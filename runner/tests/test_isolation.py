"""Apps with old, new and no versions of the runner's dependencies. Each runs in a process with the runner's layer."""

import json
import os
import platform
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path

import pytest
from ansible_collections.booty.deploy.plugins.module_utils.controller import build, lock
from uv import find_uv_bin
from websockets.sync.client import connect

# Packages that the runner's dependencies import or have imported, packages of servers, and some for which Sentry's SDK
# has integrations. Django and botocore are left out: the SDK's default integrations import them if the app has them.
POISONED = """
    a2wsgi aiohttp anyio asgiref brotli celery certifi click dotenv eventlet fastapi flask gevent greenlet h11 h2
    httpcore httptools httpx idna opentelemetry redis starlette typing_extensions urllib3 uvicorn uvloop websockets
    werkzeug wsproto yaml zstandard
"""
# The packages in the locks of apps, by the lock's name and the Python version.
OLD = ["fastapi==0.88.0", "starlette==0.22.0", "pydantic==1.10.26"]
OLD_SERVER = ["uvicorn==0.15.0", "click==7.1.2", "h11==0.9.0", "asgiref==3.4.1", "websockets==10.4", "httptools==0.5.0"]
OLD_SDK = ["sentry-sdk==1.5.12", "urllib3==1.25.11", "certifi==2019.11.28"]
MIDDLE = ["starlette==0.41.0", "pydantic==2.9.0", "websockets==12.0"]
NEW = ["fastapi", "uvicorn", "httptools", "uvloop", "websockets", "sentry-sdk", "brotli"]
LOCKS = {
    ("none", "3.11"): [],
    ("none", "3.13"): [],
    ("old", "3.11"): [*OLD, *OLD_SERVER, *OLD_SDK, "uvloop==0.17.0", "typing-extensions==4.6.0"],
    ("old", "3.13"): [*OLD, "uvicorn==0.18.3", "click==8.0.0", "h11==0.12.0", "sentry-sdk==1.45.1"],
    ("middle", "3.11"): [*MIDDLE, "uvicorn==0.24.0", "sentry-sdk==2.0.1"],
    ("middle", "3.13"): [*MIDDLE, "uvicorn==0.30.6", "sentry-sdk==2.20.0"],
    ("new", "3.11"): NEW,
    ("new", "3.13"): NEW,
    ("old urllib3", "3.13"): ["starlette", "urllib3==1.26.20", "certifi==2022.12.7", "click==8.1.8"],
}
QUICK = {("none", "3.13"), ("old", "3.11"), ("new", "3.13")}
NAMES = ("certifi", "click", "h11", "httptools", "pydantic", "sentry_sdk", "urllib3", "uvicorn", "uvloop", "websockets")
# An app that answers with the version of each package that it can import.
APP = """
import importlib.metadata, json, sys

def version(name):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return None
    return importlib.metadata.version(name)

VERSIONS = {name: version(name) for name in NAMES}
for name, module in sys.modules.items():
    if name.partition(".")[0] in NAMES and ".six.moves" not in name:
        assert getattr(module, "__file__", sys.prefix).startswith(sys.prefix), module

async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": (await receive())["text"]})
        return
    assert scope["type"] == "http"
    if scope["path"] == "/fail":
        raise ConnectionError("the database is away")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(VERSIONS).encode()})
"""
WSGI = """
def app(environ, start_response):
    if environ["PATH_INFO"] == "/fail":
        raise ConnectionError("the database is away")
    start_response("200 OK", [])
    return [environ["wsgi.input"].read(), b"{}"]
"""
FRAMEWORKS = {
    "fastapi": "from fastapi import FastAPI as App",
    "starlette": "from starlette.applications import Starlette as App",
}
ROUTES = """
from starlette.responses import JSONResponse

async def versions(request):
    return JSONResponse(VERSIONS)

app = App()
app.add_route("/", versions)
app.add_route("/health", versions)
"""


@cache
def interpreter(python):
    """Return the path of a Python such as 3.13; skip the test if the machine has none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for path in (
        Path(sys.executable),
        Path(f"/usr/bin/python{python}"),
        *pyenv.glob(f"versions/{python}.*/bin/python"),
    ):
        if path.exists():
            code = "import sys; print('{}.{}'.format(*sys.version_info))"
            if subprocess.run([path, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == python:
                return path
    pytest.skip(f"this machine has no Python {python}")


@pytest.fixture(scope="module")
def layer(tmp_path_factory):
    """Return the folder of the runner's layer for a Python, as the build makes it."""

    @cache
    def layer(python):
        folder = tmp_path_factory.mktemp("layer")
        archive, text = folder / "runner.tar.gz", (build.RUNNER / "requirements.txt").read_text()
        build.build_runner(archive, text, lock.Host(f"{python}.0", platform.machine()))
        subprocess.run(["tar", "-xzf", archive, "-C", folder], check=True)
        return folder

    return layer


class App:
    """An app in a virtual environment that has its packages and, by layer.pth as in a release, the runner's layer."""

    def __init__(self, folder, layer, python, packages):
        self.folder, self.stderr, self.process = folder, folder / "stderr", None
        self.python = folder / "venv/bin/python"
        self.uv("venv", f"--python={interpreter(python)}", folder / "venv")
        if packages:
            self.uv("pip", "install", f"--python={self.python}", "--only-binary=:all:", *packages)
        (folder / f"venv/lib/python{python}/site-packages/layer.pth").write_text(f"{layer}\n")

    @staticmethod
    def uv(*arguments):
        return subprocess.run([find_uv_bin(), "--quiet", *arguments], check=True, capture_output=True, text=True).stdout

    def start(self, code, path=(), **settings):
        """Start the runner, and return the app's URL once it serves."""
        (self.folder / "shop.py").write_text(code)
        with self.stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                [self.python, "-P", "-m", "booty_runner", "shop:app", "--port=0"],
                env={"PYTHONPATH": ":".join(map(str, [*path, self.folder])), **settings},
                cwd=self.folder,
                stderr=stderr,
            )
        ending = time.monotonic() + 30
        while not (match := re.search(r"serving release .* on (127\.0\.0\.1:\d+)", self.stderr.read_text())):
            assert self.process.poll() is None, self.stderr.read_text()
            assert time.monotonic() < ending, self.stderr.read_text()
            time.sleep(0.02)
        return f"http://{match[1]}"

    def stop(self):
        """Stop the runner; return what it wrote."""
        self.process.terminate()
        assert self.process.wait(20) == 0
        return self.stderr.read_text()

    def close(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def app(tmp_path, layer):
    apps = []

    def app(python, packages=()):
        interpreter(python)
        apps.append(App(tmp_path, layer(python), python, packages))
        return apps[-1]

    yield app
    for each in apps:
        each.close()


@pytest.fixture
def poison(tmp_path):
    """Return a folder of packages whose import raises an error that no `except ImportError` catches."""
    folder = tmp_path / "poison"
    folder.mkdir()
    for name in POISONED.split():
        (folder / f"{name}.py").write_text(f"raise SystemError('{name} is broken')\n")
    return folder


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read()


@pytest.mark.parametrize("code", [APP, WSGI], ids=["ASGI", "WSGI"])
@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_no_package_of_the_app_is_imported(app, poison, tracker, python, code):
    service = app(python)
    gate = {"SENTRY_DSN": tracker.dsn, "BOOTY_TELEMETRY_GATE": "true", "SENTRY_RELEASE": "a"}
    url = service.start(f"NAMES = ()\n{code}", path=[poison], **gate)
    assert len(tracker.events) == 1  # the event of the gate
    assert get(f"{url}/") == b"{}"
    if code == APP:
        with connect(f"{url}/".replace("http", "ws")) as client:
            client.send("both ways")
            assert client.recv() == "both ways"
    with pytest.raises(urllib.error.HTTPError, match="500"):
        get(f"{url}/fail")
    service.stop()
    assert tracker.events[1]["exception"]["values"][0]["type"] == "ConnectionError"


def test_a_poisoned_package_is_noticed(app, poison):
    service = app("3.11")
    with pytest.raises(AssertionError, match="SystemError: uvicorn is broken"):
        service.start(f"NAMES = ['uvicorn']\n{APP}", path=[poison])


@pytest.mark.parametrize(
    ("name", "python"), [pytest.param(*lock, marks=() if lock in QUICK else pytest.mark.long) for lock in LOCKS]
)
def test_an_app_imports_the_versions_of_its_lock_and_no_other_package(app, name, python):
    service = app(python, LOCKS[name, python])
    frozen = service.uv("pip", "freeze", f"--python={service.python}").replace("-", "_").splitlines()
    locked = dict(line.split("==") for line in frozen)
    framework = next((FRAMEWORKS[each] + ROUTES for each in FRAMEWORKS if each in locked), "")
    url = service.start(f"NAMES = {NAMES}\n{APP}\n{framework}")
    assert json.loads(get(f"{url}/")) == {name: locked.get(name) for name in NAMES}
    assert "Traceback" not in service.stop()
