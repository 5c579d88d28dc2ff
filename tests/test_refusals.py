"""Repositories that can't be deployed as they are. Each is refused in one sentence that says what to write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.booty.deploy.plugins.module_utils.controller import process

from tests.conftest import artifact
from tests.test_detect import FACTORY, FASTAPI, FLASK, HASHED, MANAGE, WSGI, commit

WRITE = 'in the inventory, or serve = "{0}" under [tool.booty] in the app\'s pyproject.toml'
HERE = "The repository at commit {sha}"
# The files, the values of the inventory, and the sentence. `{sha}` is the short commit.
REFUSED: dict[str, tuple[dict[str, str | bytes], dict[str, Any], str]] = {
    # What is served
    "nothing": (
        {"README.md": ""},
        {},
        f"{HERE} has no app that Booty finds: it reads entrypoint under [tool.fastapi], a Procfile, manage.py, and the"
        f" modules main, app, asgi and wsgi. Write it: app_serve: module:attribute {WRITE.format('module:attribute')}.",
    ),
    "an app in another module": (
        {"backend/web/__init__.py": "", "backend/web/run.py": FASTAPI},
        {},
        " Apps in other modules: backend.web.run:app. Write it: app_serve: backend.web.run:app in the inventory",
    ),
    "two modules": (
        {"main.py": FASTAPI, "app.py": FLASK},
        {},
        f"{HERE} has more than one app to serve: main:app (main.py) and app:app (app.py). Say which one: app_serve:"
        f" main:app {WRITE.format('main:app')}.",
    ),
    "two names": (
        {"main.py": "app = a()\napplication = b()\n"},
        {},
        "more than one app to serve: main:app (main.py) and main:application (main.py). Say which one",
    ),
    "two factories": (
        {"main.py": FACTORY, "shop/__init__.py": FACTORY},
        {},
        "more than one app to serve: main:create_app() (main.py) and shop:create_app() (shop/__init__.py).",
    ),
    "Procfile and [tool.fastapi] differ": (
        {
            "Procfile": "web: uvicorn main:app",
            "main.py": FASTAPI,
            "pyproject.toml": '[tool.fastapi]\nentrypoint = "web:app"\n',
        },
        {},
        "more than one app to serve: web:app ([tool.fastapi] in pyproject.toml) and main:app (Procfile).",
    ),
    "Procfile with two servers": (
        {"Procfile": "web: uvicorn a:app && uvicorn b:app", "a.py": FASTAPI, "b.py": FASTAPI},
        {},
        "more than one app to serve: a:app (Procfile) and b:app (Procfile).",
    ),
    "Procfile with a script": (
        {"Procfile": "web: bash start.sh", "start.sh": "", "main.py": FASTAPI},
        {},
        f"The `web:` line in the Procfile of {HERE}, `bash start.sh`, runs a script, which Booty does not read. Write"
        " what is served: app_serve: module:attribute in the inventory",
    ),
    "Procfile in the background": (
        {"Procfile": "web: nginx & gunicorn app:app", "app.py": FLASK},
        {},
        "`nginx & gunicorn app:app`, runs several programs. Write what is served: app_serve: module:attribute",
    ),
    "Procfile without the module": (
        {"Procfile": "web: gunicorn shop.wsgi:app", "app.py": FLASK},
        {},
        "`gunicorn shop.wsgi:app`, names shop.wsgi:app, and the commit has no such module. Write what is served",
    ),
    "Procfile that is open-ended": (
        {"Procfile": "web: gunicorn 'app:app", "app.py": FLASK},
        {},
        "`gunicorn 'app:app`, can't be parsed: No closing quotation. Write what is served",
    ),
    "Procfile with arguments": (
        {"Procfile": "web: gunicorn \"app:create_app('prod')\"", "app.py": FACTORY},
        {},
        "calls a factory with arguments. Booty calls a factory without any: write a function that passes them",
    ),
    "a factory with an argument": (
        {"app.py": "def create_app(config):\n    pass\n"},
        {},
        f"{HERE} has nothing that Booty can serve. create_app in app.py needs config, and Booty calls a function"
        " without arguments: write one that returns the app, and name it in app_serve.",
    ),
    "an async factory": (
        {"app.py": "async def create_app():\n    pass\n"},
        {},
        "create_app in app.py is async, and Booty calls a function without arguments",
    ),
    "aiohttp": (
        {"main.py": "from aiohttp import web\napp = web.Application()\n"},
        {},
        "app in main.py: an aiohttp app has its own server, and Booty serves ASGI and WSGI apps.",
    ),
    "Tornado": (
        {"app.py": "import tornado.web\napp = tornado.web.Application([])\n"},
        {},
        "app in app.py: a Tornado app has its own server, and Booty serves ASGI and WSGI apps.",
    ),
    "Django with two settings": (
        {
            "manage.py": MANAGE.format("a.settings") + MANAGE.format("b.settings"),
            **{f"{name}/settings.py": "" for name in "ab"},
            **{f"{name}/wsgi.py": WSGI for name in "ab"},
        },
        {},
        "more than one app to serve: a.wsgi:application (a/settings.py) and b.wsgi:application (b/settings.py).",
    ),
    # The app's own settings
    "both places": (
        {"booty.toml": "", "pyproject.toml": "[tool.booty]\n"},
        {},
        "Commit {sha} has both booty.toml and [tool.booty] in pyproject.toml. Keep one of them, and commit.",
    ),
    "an unknown key": (
        {"pyproject.toml": "[tool.booty]\nport = 1\n"},
        {},
        "[tool.booty] in pyproject.toml of commit {sha} has the unknown key port. Booty reads serve, lock, lock_extras,"
        " lock_groups, state_paths, dotenv, health_path, health_host, release_command, post_deploy_command,"
        " packages, build, build_settings, static, processes, timers.",
    ),
    "a wrong type": ({"booty.toml": "serve = 3\n"}, {}, "booty.toml of commit {sha}: serve is 3. Write a text."),
    "a list for a text": (
        {"booty.toml": 'state_paths = "media"\n'},
        {},
        "booty.toml of commit {sha}: state_paths is 'media'. Write a list of texts.",
    ),
    "a text for a table": (
        {"booty.toml": 'build_settings = "A=1"\n'},
        {},
        "booty.toml of commit {sha}: build_settings is 'A=1'. Write a table.",
    ),
    "a table with a wrong entry": (
        {"booty.toml": "build_settings = {A = 1.1}\n"},
        {},
        "booty.toml of commit {sha}: build_settings has a wrong entry. Write a text of one line for A, in quotes.",
    ),
    "a command that is no text": (
        {"booty.toml": 'build = ["make", 3]\n'},
        {},
        "booty.toml of commit {sha}: build is ['make', 3]. Write a list of texts.",
    ),
    "an empty command": (
        {"booty.toml": 'build = ""\n'},
        {},
        "booty.toml of commit {sha}: build is ['']. Write a text of one line, in quotes where YAML takes it for",
    ),
    "a wrong value": (
        {"booty.toml": 'serve = "shop.web"\n'},
        {},
        "serve is 'shop.web'. Write module:attribute or module:factory(), such as shop.web:app.",
    ),
    "a wrong health path": (
        {"booty.toml": 'health_path = "health"\n'},
        {},
        "health_path is 'health'. Write a path that begins with a slash, such as /health.",
    ),
    "a wrong health host": (
        {"booty.toml": 'health_host = "a b"\n'},
        {},
        "Write a host name, such as shop.example.com.",
    ),
    "no table": (
        {"pyproject.toml": "[tool]\nbooty = 1\n"},
        {},
        "tool.booty in pyproject.toml of commit {sha} is no table. Write [tool.booty], and keys below it.",
    ),
    "no TOML": (
        {"booty.toml": "serve = x\n"},
        {},
        "booty.toml of commit {sha} can't be read: Invalid value (at line 1",
    ),
    # Locks
    "two locks": (
        {"main.py": FASTAPI, "uv.lock": "", "requirements.txt": HASHED},
        {},
        f"{HERE} has more than one lock: uv.lock and requirements.txt. Say which one counts: app_lock: uv.lock in the"
        ' inventory, or lock = "uv.lock" under [tool.booty] in its pyproject.toml.',
    ),
    "Poetry without a lock": (
        {"main.py": FASTAPI, "pyproject.toml": '[tool.poetry.dependencies]\npython = "*"\nflask = "^3"\n'},
        {},
        f"{HERE} has dependencies of Poetry without a lock. Lock them, and commit: poetry lock",
    ),
    "Pipfile without a lock": (
        {"main.py": FASTAPI, "Pipfile": ""},
        {},
        f"{HERE} has Pipfile, which is no lock. Lock it, and commit: pipenv lock",
    ),
    "Conda": (
        {"main.py": FASTAPI, "environment.yml": ""},
        {},
        "has environment.yml, which is no lock. Conda's packages are no wheels: write requirements.txt.",
    ),
    "locks elsewhere": (
        {"main.py": FASTAPI, "requirements/prod.txt": "", "requirements/dev.txt": ""},
        {},
        "has no lock in the app's folder, and others elsewhere: requirements/dev.txt, requirements/prod.txt. Say which"
        " one counts: app_lock: requirements/dev.txt in the inventory",
    ),
    "a lock that is not there": (
        {"main.py": FASTAPI, "uv.lock": ""},
        {"lock": "locks/prod.txt"},
        "app_lock: locks/prod.txt is not there: locks/prod.txt of The repository at commit {sha}. Locks in the app's"
        " folder: uv.lock.",
    ),
    "a lock of another kind": (
        {"main.py": FASTAPI, "conda.lock": ""},
        {"lock": "conda.lock"},
        "app_lock: conda.lock is no lock that Booty reads: conda.lock of",
    ),
    "a missing include": (
        {"main.py": FASTAPI, "requirements.txt": "-r base.txt\n"},
        {},
        "base.txt, which requirements.txt includes, is not in commit {sha}. Commit it, or remove the line.",
    ),
    "an include from elsewhere": (
        {"main.py": FASTAPI, "requirements.txt": "-c https://example.com/c.txt\n"},
        {},
        "requirements.txt of commit {sha} includes https://example.com/c.txt, which is not in the commit.",
    ),
    "a lock that is no text": (
        {"main.py": FASTAPI, "requirements.txt": b"a==1 # caf\xe9\n"},
        {},
        "requirements.txt of commit {sha} is no UTF-8 (line 1). Write it as UTF-8, and commit.",
    ),
    # State paths
    "a state path that leads out": (
        {"main.py": FASTAPI},
        {"state_paths": ["../x"]},
        "app_state_paths: '../x' is no path below the app's folder. Write one such as media/ or db.sqlite3.",
    ),
    "an absolute state path": (
        {"main.py": FASTAPI},
        {"state_paths": ["/x"]},
        "'/x' is no path below the app's folder.",
    ),
    "the app's folder as state": ({"main.py": FASTAPI}, {"state_paths": ["a/.."]}, "'a/..' is no path below"),
    "a state path through a link": (
        {"main.py": FASTAPI, "media ->": "/srv"},
        {"state_paths": ["media/x"]},
        "app_state_paths: 'media/x' leads through the link media. Name its target instead.",
    ),
    "a state path through a file": (
        {"main.py": FASTAPI},
        {"state_paths": ["main.py/x"]},
        "app_state_paths: 'main.py/x' leads through main.py, which is a file in the commit.",
    ),
    "a file as a folder": (
        {"main.py": FASTAPI},
        {"state_paths": ["main.py/"]},
        "app_state_paths: 'main.py/' is a file in the commit. Write it without the slash: main.py",
    ),
    "code in a state path": (
        {"main.py": FASTAPI, "lib/v.py": "V = 1\n"},
        {"state_paths": ["lib/"]},
        "app_state_paths: 'lib/' has code in the commit, lib/v.py: the code of the first release would stay for all.",
    ),
    "a module that can't be parsed": (
        {"main.py": "def f(:\n"},
        {},
        f"{HERE} has no app that Booty finds: it reads entrypoint under [tool.fastapi], a Procfile, manage.py, and the"
        " modules main, app, asgi and wsgi. main.py can't be parsed: invalid syntax (<unknown>, line 1).",
    ),
    "a state path in another": (
        {"main.py": FASTAPI},
        {"state_paths": ["media/", "media/x"]},
        "app_state_paths has both media/ and media/x, which lies in it. Remove one of them.",
    ),
    "static files at a state path": (
        {"main.py": FASTAPI, "media/a": ""},
        {"static": {"/media/": "media"}, "state_paths": ["media/"]},
        "app_static: media (/media/) can't have media, which app_state_paths keeps in the state directory: the proxy"
        " serves files of a release alone. Move them, or let the app serve them.",
    ),
    "a state path within static files": (
        {"main.py": FASTAPI},
        {"static": {"/static/": "static"}, "state_paths": ["static/uploads/"]},
        "app_static: static (/static/) can't have static/uploads, which app_state_paths keeps",
    ),
    "a wrong prefix": (
        {"booty.toml": 'static = {"static" = "static"}\n'},
        {},
        "booty.toml of commit {sha}: static has a wrong entry. Write a path of one or two parts with a slash at both",
    ),
    "a prefix twice": (
        {"booty.toml": '[static]\n"/static/" = "a"\n"/static/" = "b"\n'},
        {},
        "booty.toml of commit {sha} can't be read: Cannot overwrite a value (at line 3",
    ),
    # What the build finds
    "another Python": (
        {"main.py": FASTAPI, "pyproject.toml": '[project]\nname = "a"\nrequires-python = ">=3.99"\n'},
        {},
        'pyproject.toml of commit {sha} has requires-python = ">=3.99", and the host runs it with Python 3.11.2.',
    ),
    "another Python for Poetry": (
        {"main.py": FASTAPI, "pyproject.toml": '[tool.poetry.dependencies]\npython = "^3.12"\n'},
        {},
        'pyproject.toml of commit {sha} has requires-python = "<4,>=3.12", and the host runs it with Python 3.11.2.',
    ),
    "another Python in uv.lock": (
        {"main.py": FASTAPI, "uv.lock": 'version = 1\nrequires-python = ">=3.13"\n'},
        {},
        'uv.lock of commit {sha} has requires-python = ">=3.13"',
    ),
    "a poetry.lock without a package": (
        {
            "main.py": FASTAPI,
            "poetry.lock": "package = []\n[metadata]\n",
            "pyproject.toml": '[tool.poetry.dependencies]\nflask = "^3"\n',
        },
        {},
        "poetry.lock of commit {sha} can't be read: flask is not locked. Lock again, and commit: poetry lock",
    ),
    "a pdm.lock without groups": (
        {"main.py": FASTAPI, "pdm.lock": '[[package]]\nname = "a"\nversion = "1"\n'},
        {},
        "its packages have no groups: pdm lock --strategy inherit_metadata. Lock again, and commit: pdm lock",
    ),
    "a Pipfile.lock of a branch": (
        {"main.py": FASTAPI, "Pipfile.lock": '{"default": {"a": {"git": "https://example.com/a", "ref": "main"}}}'},
        {},
        "Pipfile.lock of commit {sha} does not pin a to a commit: git+https://example.com/a@main.",
    ),
    "a Pipfile.lock without hashes": (
        {"main.py": FASTAPI, "Pipfile.lock": '{"default": {"a": {"version": "==1"}}}'},
        {},
        "Pipfile.lock of commit {sha} has no hashes for a. Lock again, and commit: pipenv lock",
    ),
    "a Pipfile.lock that is no JSON": (
        {"main.py": FASTAPI, "Pipfile.lock": "{"},
        {},
        "Pipfile.lock of commit {sha} can't be read: Expecting property name",
    ),
    "a category that is not there": (
        {"main.py": FASTAPI, "Pipfile.lock": '{"default": {}}'},
        {"lock_groups": ["web"]},
        "Pipfile.lock of commit {sha} can't be read: it has no 'web'.",
    ),
    "extras of a requirements file": (
        {"main.py": FASTAPI, "requirements.txt": HASHED},
        {"lock_extras": ["web"]},
        "requirements.txt of commit {sha} has no extras or groups. Remove app_lock_extras and app_lock_groups.",
    ),
    "a package that is not locked": (
        {
            "main.py": FASTAPI,
            "requirements.txt": HASHED,
            "pyproject.toml": '[project]\nname = "shop"\ndependencies = ["flask"]\n',
        },
        {},
        "The lock of commit {sha} is out of date: pyproject.toml wants flask, which is not locked in requirements.txt.",
    ),
    "a folder that is not there": (
        {"main.py": FASTAPI, "requirements.txt": f"{HASHED}-e ./libs/prices\n"},
        {},
        "requirements.txt of commit {sha} names the folder libs/prices, which is not in the commit.",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_repository_that_is_refused(kind: str, tmp_path: Path) -> None:
    files, inventory, sentence = REFUSED[kind]
    (tmp_path / "shop").mkdir()
    sha = commit(tmp_path / "shop", files)
    with pytest.raises(process.BuildError) as refusal:
        artifact(tmp_path / "shop", sha, tmp_path / "cache", ".", "3.11.2", **inventory)
    assert sentence.replace("{sha}", sha[:12]) in str(refusal.value)
    assert not (tmp_path / "cache/releases").exists()
