"""Detection of the app and of its lock in repositories without settings. Each repository is a dict of files."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.booty.deploy.plugins.module_utils.controller import describe, git

FASTAPI = "from fastapi import FastAPI\napp = FastAPI()\n"
FLASK = "from flask import Flask\napp = Flask(__name__)\n"
FACTORY = "def create_app():\n    return object()\n"
MANAGE = 'import os\nos.environ.setdefault("DJANGO_SETTINGS_MODULE", "{}")\n'
WSGI = "from django.core.wsgi import get_wsgi_application\napplication = get_wsgi_application()\n"
HASHED = f"a==1 --hash=sha256:{'0' * 64}\n"


def commit(folder: Path, files: dict[str, str | bytes]) -> str:
    """Make a repository with files, and return its commit."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(" ->"):
            (folder / name.removesuffix(" ->")).symlink_to(str(content))
        else:
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    author = ("-c", "user.name=Test", "-c", "user.email=test@example.com")
    for command in (
        ("init", "--quiet", "--initial-branch=main"),
        ("add", "--all", "--force"),
        (*author, "commit", "--quiet", "--allow-empty", "-m", "An app"),
    ):
        subprocess.run(["git", "-C", folder, *command], check=True, capture_output=True)
    return git.resolve(folder, "HEAD")


def described(folder: Path, files: dict[str, str | bytes], path: str = ".", **inventory: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    sha = commit(folder, files)
    return describe.describe(folder, sha, path, inventory)


SERVED: dict[str, tuple[dict[str, str | bytes], str, list[str]]] = {
    "a FastAPI app in main.py": ({"main.py": FASTAPI}, "main:app", []),
    "a Flask app in app.py": ({"app.py": FLASK}, "app:app", []),
    "an application in wsgi.py": ({"wsgi.py": "application = make()\n"}, "wsgi:application", []),
    "an app in asgi.py": ({"asgi.py": FASTAPI}, "asgi:app", []),
    "a package app with main": ({"app/__init__.py": "", "app/main.py": FASTAPI}, "app.main:app", []),
    "a folder app without __init__": ({"app/main.py": FASTAPI}, "app.main:app", []),
    "an app in a package's __init__": ({"app/__init__.py": FLASK}, "app:app", []),
    "src without a package": ({"src/main.py": FASTAPI}, "main:app", ["src"]),
    "a package in src": ({"src/shop/__init__.py": "", "src/shop/main.py": FASTAPI}, "shop.main:app", ["src"]),
    "a package in src that is installed": (
        {"src/shop/__init__.py": "", "src/shop/main.py": FASTAPI, "pyproject.toml": "[build-system]\nrequires = []\n"},
        "shop.main:app",
        [],
    ),
    "package = false": (
        {
            "src/shop/__init__.py": "",
            "src/shop/main.py": FASTAPI,
            "pyproject.toml": "[build-system]\nrequires = []\n[tool.uv]\npackage = false\n",
        },
        "shop.main:app",
        ["src"],
    ),
    "the bundled app of an older commit": (
        {
            "src/booty/__init__.py": "",
            "src/booty/main.py": "def create_app(settings=None):\n    app = 1\n",
            "pyproject.toml": "[build-system]\nrequires = []\n",
        },
        "booty.main:create_app()",
        [],
    ),
    "a factory in a package": ({"flaskr/__init__.py": FACTORY, "tests/app.py": FLASK}, "flaskr:create_app()", []),
    "a module that calls the factory": (
        {"flaskr/__init__.py": FACTORY, "wsgi.py": "from flaskr import create_app\napp = create_app()\n"},
        "wsgi:app",
        [],
    ),
    "an app that another module imports": (
        {"main.py": "from shop.app import app\n", "shop/__init__.py": "", "shop/app.py": FLASK},
        "main:app",
        [],
    ),
    "an app under two names": ({"main.py": FASTAPI + "application = app\n"}, "main:app", []),
    "an app that is wrapped": ({"app.py": FLASK + "from x import Middleware\napp = Middleware(app)\n"}, "app:app", []),
    "an app under another name": ({"main.py": "import fastapi\napi = fastapi.FastAPI()\n"}, "main:api", []),
    "an app and its sub-app": ({"main.py": FASTAPI + "admin = FastAPI()\n"}, "main:app", []),
    "raw ASGI": ({"main.py": "async def app(scope, receive, send):\n    pass\n"}, "main:app", []),
    "raw WSGI": ({"app.py": "def handle(environ, start_response):\n    return []\n"}, "app:handle", []),
    "Celery's app is none": (
        {"app.py": "from celery import Celery\napp = Celery()\n", "main.py": FASTAPI},
        "main:app",
        [],
    ),
    "an app in `try` and not in `__main__`": (
        {
            "main.py": f"try:\n    import x\nexcept ImportError:\n    x = 1\nif x:\n    {FASTAPI.splitlines()[1]}\n"
            "if __name__ == '__main__':\n    application = run()\n"
        },
        "main:app",
        [],
    ),
    "Dash's server": (
        {"app.py": "import dash\napp = dash.Dash(__name__)\nserver = app.server\n"},
        "app:app.server",
        [],
    ),
    "[tool.fastapi]": (
        {"pyproject.toml": '[tool.fastapi]\nentrypoint = "shop.web:api"\n', "shop/web.py": FASTAPI, "main.py": FASTAPI},
        "shop.web:api",
        [],
    ),
    "Django by WSGI": (
        {
            "manage.py": MANAGE.format("shop.settings"),
            "shop/settings.py": 'WSGI_APPLICATION = "shop.wsgi.application"\n',
            "shop/wsgi.py": WSGI,
            "shop/asgi.py": WSGI,
        },
        "shop.wsgi:application",
        [],
    ),
    "Django by ASGI": (
        {
            "manage.py": MANAGE.format("shop.settings"),
            "shop/settings.py": 'WSGI_APPLICATION = "x.wsgi.app"\nASGI_APPLICATION = "shop.asgi.application"\n',
            "shop/wsgi.py": WSGI,
            "shop/asgi.py": WSGI,
        },
        "shop.asgi:application",
        [],
    ),
    "Django with several settings": (
        {
            "manage.py": MANAGE.format("config.settings.local"),
            "config/settings/local.py": "from .base import *\nDEBUG = True\n",
            "config/settings/base.py": 'WSGI_APPLICATION = "config.wsgi.application"\n',
            "config/wsgi.py": WSGI,
        },
        "config.wsgi:application",
        [],
    ),
    "Django without either": (
        {"manage.py": MANAGE.format("shop.settings"), "shop/settings.py": "", "shop/wsgi.py": WSGI},
        "shop.wsgi:application",
        [],
    ),
    "Django in src": (
        {"src/manage.py": MANAGE.format("shop.settings"), "src/shop/settings.py": "", "src/shop/wsgi.py": WSGI},
        "shop.wsgi:application",
        ["src"],
    ),
    "Procfile with uvicorn": (
        {"Procfile": "web: uvicorn shop.web:api --host 0.0.0.0 --port $PORT\nworker: celery\n", "shop/web.py": FASTAPI},
        "shop.web:api",
        [],
    ),
    "Procfile with gunicorn and no attribute": (
        {"Procfile": "web: gunicorn --name shop -k gthread shop.wsgi --log-file -\n", "shop/wsgi.py": WSGI},
        "shop.wsgi:application",
        [],
    ),
    "Procfile with a factory": (
        {"Procfile": "web: gunicorn -w 4 'shop:create_app()'", "shop/__init__.py": FACTORY},
        "shop:create_app()",
        [],
    ),
    "Procfile with --factory": (
        {"Procfile": "web: uvicorn --factory shop:create_app", "shop/__init__.py": FACTORY},
        "shop:create_app()",
        [],
    ),
    "Procfile with steps before": (
        {
            "Procfile": "web: python manage.py migrate && DEBUG=0 uv run python -m gunicorn app:app; true",
            "app.py": FLASK,
            "main.py": FLASK,
        },
        "app:app",
        [],
    ),
    "Procfile with --chdir": (
        {"Procfile": "web: gunicorn --chdir backend main:app", "backend/main.py": FLASK},
        "main:app",
        ["backend"],
    ),
    "Procfile that says nothing": ({"Procfile": "web: flask run -p $PORT", "app.py": FLASK}, "app:app", []),
    "booty.toml": ({"booty.toml": 'serve = "x:y"\n', "main.py": FASTAPI}, "x:y", []),
    "[tool.booty]": ({"pyproject.toml": '[tool.booty]\nserve = "x:y"\n', "main.py": FASTAPI}, "x:y", []),
    "a file that is no Python": ({"app.py": "print 'two'\n", "main.py": FASTAPI}, "main:app", []),
}


@pytest.mark.parametrize("kind", SERVED)
def test_what_is_served(kind: str, tmp_path: Path) -> None:
    files, serve, import_paths = SERVED[kind]
    description = described(tmp_path, files)
    assert (description["serve"], description["import_paths"]) == (serve, import_paths)
    assert description["found"][0].startswith(f"serves {serve} (")


LOCKED: dict[str, tuple[dict[str, str | bytes], str, str]] = {
    "uv.lock": ({"uv.lock": "", "pyproject.toml": ""}, "uv.lock", "lock: uv.lock"),
    "pylock.toml": ({"pylock.toml": ""}, "pylock.toml", "lock: pylock.toml"),
    "poetry.lock": ({"poetry.lock": ""}, "poetry.lock", "lock: poetry.lock"),
    "pdm.lock": ({"pdm.lock": ""}, "pdm.lock", "lock: pdm.lock"),
    "Pipfile.lock": ({"Pipfile": "", "Pipfile.lock": "{}"}, "Pipfile.lock", "lock: Pipfile.lock"),
    "hashed": ({"requirements.txt": HASHED}, "requirements.txt", "lock: requirements.txt, with hashes"),
    "hashed in a file that is included": (
        {"requirements.txt": "-r locks/web.txt\n", "locks/web.txt": HASHED},
        "requirements.txt",
        "lock: requirements.txt, with hashes",
    ),
    "hashed in UTF-16": (
        {"requirements.txt": HASHED.encode("utf-16")},
        "requirements.txt",
        "lock: requirements.txt, with hashes",
    ),
    "pinned": (
        {"requirements.txt": "a==1\n"},
        "requirements.txt",
        "lock: requirements.txt has no hashes; the build resolves it once for this commit",
    ),
    "a lone pyproject.toml": (
        {"pyproject.toml": '[project]\nname = "a"\ndependencies = ["b"]\n'},
        "pyproject.toml",
        "lock: pyproject.toml has no hashes; the build resolves it once for this commit",
    ),
    "setup.py": (
        {"setup.py": ""},
        "setup.py",
        "lock: setup.py has no hashes; the build resolves it once for this commit",
    ),
    "none": ({}, "", "lock: none, so only Python's standard library and the app's own modules are there"),
}


@pytest.mark.parametrize("kind", LOCKED)
def test_which_lock(kind: str, tmp_path: Path) -> None:
    files, lock, sentence = LOCKED[kind]
    description = described(tmp_path, {"main.py": FASTAPI, **files})
    assert (description["lock"], description["found"][1]) == (lock, sentence)


def test_the_lock_of_a_workspace_lies_above(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"uv.lock": "", "pyproject.toml": "", "apps/shop/main.py": FASTAPI}
    assert described(tmp_path, files, "apps/shop")["lock"] == "../../uv.lock"


def test_the_inventory_overrides_the_commit_which_overrides_detection(tmp_path: Path) -> None:
    own = 'serve = "a:b"\nlock = "requirements.txt"\nhealth_path = "/up"\nhealth_host = "example.com"\n'
    own += 'state_paths = ["x"]\n'
    files: dict[str, str | bytes] = {"main.py": FASTAPI, "booty.toml": own, "requirements.txt": HASHED, "uv.lock": ""}
    description = described(tmp_path, files)
    assert description == {
        "path": ".",
        "serve": "a:b",
        "import_paths": [],
        "health": {"path": "/up", "host": "example.com"},
        "state_paths": ["x"],
        "static": {},
        "lock": "requirements.txt",
        "extras": [],
        "groups": [],
        "dotenv": False,
        "release_command": [],
        "post_deploy_command": [],
        "packages": [],
        "build": [],
        "build_settings": [],
        "build_settings_hash": "",
        "processes": {},
        "timers": {},
        "found": [
            "serves a:b (booty.toml)",
            "lock: requirements.txt, with hashes",
            "keeps x in the state directory",
        ],
    }
    sha = git.resolve(tmp_path, "HEAD")
    inventory = {"serve": "c:d()", "lock": "uv.lock", "lock_extras": ["e"], "state_paths": ["media/"]}
    description = describe.describe(tmp_path, sha, ".", inventory)
    assert (description["serve"], description["lock"], description["extras"]) == ("c:d()", "uv.lock", ["e"])
    assert description["state_paths"] == ["media/"]
    assert description["found"][0] == "serves c:d() (app_serve)"


def test_the_commands_of_a_release(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "main.py": FASTAPI,
        "Procfile": "web: uvicorn main:app\nrelease: flask db upgrade\nworker: celery worker\nbeat: celery beat\n",
    }
    description = described(tmp_path, files)
    assert description["release_command"] == ["flask db upgrade"]
    assert "release command: flask db upgrade (Procfile)" in description["found"]
    assert "does not start worker, beat (Procfile)" in description["found"]
    # One command or a list, and the Procfile counts no more.
    files["booty.toml"] = 'release_command = "true"\npost_deploy_command = ["a", "b"]\n'
    description = described(tmp_path, files)
    assert (description["release_command"], description["post_deploy_command"]) == (["true"], ["a", "b"])
    assert "post-deploy command: b (booty.toml)" in description["found"]


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("media/", "media/"),
        ("media", "media"),
        ("./a//b.db", "a/b.db"),
        ("static", "static/"),
        ("static/x", "static/x"),
    ],
)
def test_state_paths(written: str, normal: str, tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"main.py": FASTAPI, "static/x": ""}
    assert described(tmp_path, files, state_paths=[written])["state_paths"] == [normal]


def test_files_for_the_environment_are_named(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"main.py": FASTAPI, ".env": "", "a/.env.prod": "", ".env.example": "", "x.env": ""}
    assert "leaves out .env, a/.env.prod (app_dotenv)" in described(tmp_path, files)["found"]
    sha = git.resolve(tmp_path, "HEAD")
    assert "ships .env, a/.env.prod (app_dotenv)" in describe.describe(tmp_path, sha, ".", {"dotenv": True})["found"]
